//! The library, installed, and programs against it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Output};

use tempfile::TempDir;

/// What is installed and compiled, from this program: the folder that it was built in may be out of reach.
const FILES: &[(&str, &str)] = &[
    ("install", include_str!("../../install")),
    ("tcpmig.pc.in", include_str!("../../tcpmig.pc.in")),
    ("include/tcpmig.h", HEADER),
    ("man/page.awk", include_str!("../../man/page.awk")),
    (
        "examples/counter_agent.c",
        include_str!("../../examples/counter_agent.c"),
    ),
    (
        "examples/counter_upgrade.c",
        include_str!("../../examples/counter_upgrade.c"),
    ),
    (
        "examples/dump_restore.c",
        include_str!("../../examples/dump_restore.c"),
    ),
    (
        "examples/http_server.c",
        include_str!("../../examples/http_server.c"),
    ),
    (
        "examples/counter_upgrade.go",
        include_str!("../../examples/counter_upgrade.go"),
    ),
    ("nginx/build", include_str!("../../nginx/build")),
    ("nginx/config", include_str!("../../nginx/config")),
    (
        "nginx/ngx_http_tcpmig.h",
        include_str!("../../nginx/ngx_http_tcpmig.h"),
    ),
    (
        "nginx/ngx_http_tcpmig_module.c",
        include_str!("../../nginx/ngx_http_tcpmig_module.c"),
    ),
    (
        "nginx/ngx_http_tcpmig_link.c",
        include_str!("../../nginx/ngx_http_tcpmig_link.c"),
    ),
    (
        "nginx/ngx_http_tcpmig_connecting.c",
        include_str!("../../nginx/ngx_http_tcpmig_connecting.c"),
    ),
    (
        "nginx/ngx_http_tcpmig_rest.c",
        include_str!("../../nginx/ngx_http_tcpmig_rest.c"),
    ),
    (
        "nginx/ngx_http_tcpmig_leaving.c",
        include_str!("../../nginx/ngx_http_tcpmig_leaving.c"),
    ),
    (
        "nginx/ngx_http_tcpmig_arriving.c",
        include_str!("../../nginx/ngx_http_tcpmig_arriving.c"),
    ),
    ("misuse.c", include_str!("../c/misuse.c")),
    ("many.c", include_str!("../c/many.c")),
    ("ctypes_test.py", include_str!("../ctypes_test.py")),
];

pub(crate) const HEADER: &str = include_str!("../../include/tcpmig.h");

/// How a program is built.
#[derive(Clone, Copy, Default)]
pub(crate) struct How {
    pub(crate) cxx: bool,
    pub(crate) is_static: bool,
    pub(crate) sanitized: bool,
}

/// A prefix with the library in it. It goes when this does.
pub(crate) struct Installed(TempDir);

pub(crate) fn said(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8_lossy(&both).into_owned()
}

pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        said(&output)
    );
    said(&output)
}

/// The folder with the library that this test was built with: the one of this program.
pub(crate) fn built() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    program.parent().unwrap().to_owned()
}

impl Installed {
    /// With the shared library. The static one is large, and few programs need it.
    pub(crate) fn new() -> Self {
        Self::with(&["libtcpmig_c.so"])
    }

    pub(crate) fn with_static() -> Self {
        Self::with(&["libtcpmig_c.so", "libtcpmig_c.a"])
    }

    fn with(libraries: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["examples", "include", "man", "nginx"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        for (name, content) in FILES {
            fs::write(folder.path().join(name), content).unwrap();
        }
        let install = folder.path().join("install");
        fs::set_permissions(&install, fs::Permissions::from_mode(0o755)).unwrap();
        let prefix = folder.path().join("prefix");
        let from = folder.path().join("built");
        fs::create_dir(&from).unwrap();
        // In the place of one that is not needed.
        fs::write(from.join("libtcpmig_c.a"), "").unwrap();
        for library in libraries {
            let _ = fs::remove_file(from.join(library));
            symlink(built().join(library), from.join(library)).unwrap();
        }
        let mut command = Command::new("bash");
        command.arg(&install).arg("--built").arg(&from);
        // Not for the system, also if this is root.
        run(command.arg("/usr").env("DESTDIR", &prefix));
        // As if it had been installed there without DESTDIR.
        let config = prefix.join("usr/lib/pkgconfig/tcpmig.pc");
        let text = fs::read_to_string(&config).unwrap();
        let there = prefix.join("usr");
        let text = text.replace("/usr", there.to_str().unwrap());
        fs::write(&config, text).unwrap();
        Self(folder)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn libraries(&self) -> PathBuf {
        self.path("prefix/usr/lib")
    }

    /// What pkg-config says, as words.
    fn config(&self, asked: &[&str]) -> Vec<String> {
        let mut command = Command::new("pkg-config");
        command.args(asked).arg("tcpmig");
        let flags = run(command.env("PKG_CONFIG_PATH", self.libraries().join("pkgconfig")));
        flags.split_whitespace().map(str::to_owned).collect()
    }

    /// Builds one of the programs in Go.
    pub(crate) fn compile_go(&self, source: &str) -> PathBuf {
        let program = self.path(&format!("{source}-built"));
        let mut command = Command::new("go");
        command.args(["build", "-o"]).arg(&program);
        command.arg(self.path("examples").join(source));
        command.env("PKG_CONFIG_PATH", self.libraries().join("pkgconfig"));
        // Who runs this may have no home.
        command.env("GOCACHE", self.path("go cache"));
        command.env("GOPATH", self.path("go path"));
        run(&mut command);
        program
    }

    /// Compiles one of the programs as a newcomer does, with every warning an error.
    pub(crate) fn compile(&self, source: &str, how: How) -> PathBuf {
        let program = self.path(&format!(
            "{source}-{}{}{}",
            u8::from(how.cxx),
            u8::from(how.is_static),
            u8::from(how.sanitized)
        ));
        let mut command = Command::new(if how.cxx { "g++" } else { "gcc" });
        if how.cxx {
            command.args(["-std=c++11", "-x", "c++"]);
        } else {
            command.arg("-std=c99");
        }
        command.args(["-D_POSIX_C_SOURCE=200809L", "-pedantic", "-O1", "-g"]);
        command.args([
            "-Wall",
            "-Wextra",
            "-Werror",
            "-Wno-error=format-truncation",
        ]);
        if how.sanitized {
            command.arg("-fsanitize=address");
        }
        command.args(self.config(&["--cflags"]));
        let example = self.path("examples").join(source);
        let from = if example.exists() {
            example
        } else {
            self.path(source)
        };
        command.arg(from).args(["-x", "none", "-o"]).arg(&program);
        if how.is_static {
            command.arg(self.libraries().join("libtcpmig.a"));
            let libraries = self.config(&["--libs", "--static"]);
            command.args(libraries.iter().filter(|flag| *flag != "-ltcpmig"));
        } else {
            command.args(self.config(&["--libs"]));
        }
        run(&mut command);
        program
    }

    /// Makes the command one that finds the library.
    pub(crate) fn with_library<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("LD_LIBRARY_PATH", self.libraries())
    }
}

/// What runs a program and fails if it uses memory that is not its own, or leaves some. What is "possibly lost" is not: the Rust
/// library keeps pointers to the middle of some blocks, and the stack of a thread that is just ending counts as well.
pub(crate) const VALGRIND: [&str; 6] = [
    "valgrind",
    "--quiet",
    "--error-exitcode=99",
    "--leak-check=full",
    "--show-leak-kinds=definite,indirect",
    "--errors-for-leak-kinds=definite,indirect",
];
