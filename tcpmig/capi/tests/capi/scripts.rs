//! What installs the library and builds the module says what is wrong with what it is given.

use std::path::Path;
use std::process::Command;

use crate::built::{Installed, said};

/// The exit status of a script, and what it says.
fn calls(script: &Path, arguments: &[&str], environment: &[(&str, &Path)]) -> (i32, String) {
    let mut command = Command::new("bash");
    command.arg(script).args(arguments);
    command.envs(environment.iter().copied());
    let output = command.output().unwrap();
    (output.status.code().unwrap(), said(&output))
}

#[test]
fn they_teach_how_they_are_called() {
    let installed = Installed::new();
    for script in ["install", "nginx/build"] {
        let path = installed.path(script);
        let usage = format!("    tcpmig/capi/{script} [");
        let (status, said) = calls(&path, &["--help"], &[]);
        assert!(status == 0 && said.contains(&usage), "{said}");
        for wrong in [&["--hepl"][..], &["a", "b"], &["--built"]] {
            let (status, said) = calls(&path, wrong, &[]);
            assert!(status == 2 && said.contains(&usage), "{wrong:?}: {said}");
        }
    }
}

#[test]
fn a_library_that_was_not_built_is_named() {
    let installed = Installed::new();
    let (status, said) = calls(&installed.path("install"), &["--built", "/nowhere"], &[]);
    assert_eq!(status, 1);
    assert_eq!(said, "/nowhere has no libtcpmig_c.so\n");
}

/// Where nginx's makefiles would look for files of other names.
#[test]
fn a_folder_that_nginx_does_not_build_in_is_named() {
    let installed = Installed::new();
    let prefix = installed.path("prefix/usr");
    for name in ["a.Sb", "a.ccb", "a.cpp", "a b"] {
        let folder = installed.path(name);
        std::fs::create_dir(&folder).unwrap();
        let (status, said) = calls(
            &installed.path("nginx/build"),
            &[],
            &[("PREFIX", &prefix), ("TMPDIR", &folder)],
        );
        let says = format!("nginx does not build in {}: set TMPDIR", folder.display());
        assert!(status == 1 && said.starts_with(&says), "{said}");
        // Nothing is left in it.
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    }
}
