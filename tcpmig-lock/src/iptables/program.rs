//! The programs: where they are, and one run of each.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::LockError;

/// Where the programs are even if the path does not say so, as for users other than root.
const PLACES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"];
/// The file by which the programs of the legacy flavour keep each other away, and the variable that names another.
const XTABLES_LOCK: &str = "/run/xtables.lock";
const XTABLES_LOCKFILE: &str = "XTABLES_LOCKFILE";
/// How many seconds the legacy flavour waits for that file.
const PATIENCE: &str = "10";

/// Which of the two implementations is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Flavour {
    /// What the host uses: `iptables-restore`, whatever that is.
    #[default]
    Default,
    /// `iptables-nft-restore`: rules of `nf_tables`.
    Nft,
    /// `iptables-legacy-restore`: rules of `ip_tables`, which newer kernels may lack.
    Legacy,
}

impl Flavour {
    fn infix(self) -> &'static str {
        match self {
            Self::Default => "",
            Self::Nft => "-nft",
            Self::Legacy => "-legacy",
        }
    }

    fn program(self, v4: bool, what: &str) -> String {
        let name = if v4 { "iptables" } else { "ip6tables" };
        format!("{name}{}-{what}", self.infix())
    }

    /// The rules of the table `raw` as `iptables-save` prints them.
    pub(super) fn save(self, v4: bool) -> Result<String, LockError> {
        let program = self.program(v4, "save");
        run(&program, &["-t", "raw"], "", Stdio::piped())
    }

    /// Has a batch carried out, all of it or nothing. The program has `others_wait` open as long as it runs, so that
    /// it keeps others away to its end even if this process is killed meanwhile.
    pub(super) fn restore(
        self,
        v4: bool,
        batch: &str,
        others_wait: &File,
    ) -> Result<(), LockError> {
        let program = self.program(v4, "restore");
        let path = Path::new("lock");
        let others_wait = others_wait.try_clone().map_err(LockError::file(path))?;
        let arguments = ["--noflush", "--wait", PATIENCE];
        run(&program, &arguments, batch, others_wait.into()).map(drop)
    }

    /// Whether the programs for IPv4 are there.
    pub(super) fn check(self) -> Result<(), LockError> {
        for what in ["save", "restore"] {
            find(&self.program(true, what))?;
        }
        Ok(())
    }
}

fn find(program: &str) -> Result<PathBuf, LockError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    places.extend(PLACES.map(PathBuf::from));
    // An empty entry of the path would mean the working directory.
    places.retain(|place| place.is_absolute());
    let found = places.iter().map(|place| place.join(program));
    if let Some(found) = found.into_iter().find(|path| path.is_file()) {
        return Ok(found);
    }
    let searched: Vec<OsString> = places.into_iter().map(PathBuf::into_os_string).collect();
    Err(LockError::NoProgram {
        program: program.to_owned(),
        searched: String::from_utf8_lossy(searched.join(":".as_ref()).as_bytes()).into_owned(),
        package: "iptables",
    })
}

/// Whether the file can be used by which the legacy flavour keeps others away. In a user namespace it cannot.
fn can_lock() -> bool {
    let flags = OFlag::O_RDONLY | OFlag::O_CREAT | OFlag::O_CLOEXEC;
    nix::fcntl::open(XTABLES_LOCK, flags, Mode::S_IRUSR | Mode::S_IWUSR).is_ok()
}

fn run(program: &str, arguments: &[&str], input: &str, stdout: Stdio) -> Result<String, LockError> {
    let path = find(program)?;
    let failed = |message: String| LockError::Program {
        program: format!("{program} {}", arguments.join(" ")),
        message,
    };
    let mut command = Command::new(&path);
    command.args(arguments).env("LC_ALL", "C");
    if std::env::var_os(XTABLES_LOCKFILE).is_none() && !can_lock() {
        // Other processes that change the rules of this namespace are then kept away by the kernel's own check only,
        // which makes a batch fail.
        command.env(XTABLES_LOCKFILE, Path::new("/dev/null"));
    }
    let output = feed(command, input, stdout).map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let denied = [
        "Permission denied",
        "Operation not permitted",
        "you must be root",
    ];
    if denied.iter().any(|text| said.contains(text)) {
        return Err(LockError::NoPermission {
            call: "iptables-restore",
        });
    }
    Err(failed(match said.trim() {
        "" => output.status.to_string(),
        said => said.to_owned(),
    }))
}

/// Runs a program with this as its input.
fn feed(mut command: Command, input: &str, stdout: Stdio) -> io::Result<std::process::Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(stdout)
        .stderr(Stdio::piped())
        .spawn()?;
    let stdin = child.stdin.take();
    std::thread::scope(|scope| {
        // Beside the reading, because either side may fill its pipe first.
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input.as_bytes())));
        child.wait_with_output()
    })
}
