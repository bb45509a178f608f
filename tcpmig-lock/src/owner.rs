//! Who makes a lock, and whether he lives.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

/// How much of a process's name counts.
const NAME: usize = 15;

/// A process that made or last renewed a lock, so that another one that got its number later is not taken for it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Owner {
    /// Its number in its own pid namespace.
    pub pid: u32,
    /// Its name (`comm`), with nothing in it but letters, digits and `-_./:`.
    pub name: String,
    /// When it was started, in clock ticks since this host was (`starttime` in `/proc/PID/stat`), if that is known.
    pub started: Option<u64>,
    /// The inode of its pid namespace, if that is known.
    pub namespace: Option<u64>,
}

impl Owner {
    /// A process of which no more is known than this.
    #[must_use]
    pub fn new(pid: u32, name: String) -> Self {
        Self {
            pid,
            name,
            started: None,
            namespace: None,
        }
    }

    /// The calling process.
    #[must_use]
    pub fn current() -> Self {
        Self {
            pid: std::process::id(),
            name: name(),
            started: stat("self").ok().flatten().map(|stat| stat.started),
            namespace: pid_namespace(),
        }
    }

    /// Whether it lives, or may live: false only if it has certainly ended.
    ///
    /// - It has ended if no process has its number, or one that was started at another time, or (where its start is not
    ///   known) one with another name. One that nobody has waited for yet (a zombie) has ended.
    /// - A process of another pid namespace cannot be looked up, and counts as living. So does everything where `/proc`
    ///   is not that of the caller's own pid namespace.
    #[must_use]
    pub fn may_live(&self) -> bool {
        if let (Some(its), Some(own)) = (self.namespace, pid_namespace())
            && its != own
        {
            return true;
        }
        if !proc_is_ours() {
            return true;
        }
        match stat(&self.pid.to_string()) {
            Ok(None) => false,
            Ok(Some(stat)) if stat.ended => false,
            Ok(Some(stat)) => match self.started {
                Some(started) => stat.started == started,
                None => plain(&stat.name) == self.name,
            },
            Err(_) => true,
        }
    }
}

impl Owner {
    /// It as words, for a comment or a file that [`from_words`](Self::from_words) reads.
    pub(crate) fn words(&self) -> String {
        let Self { pid, name, .. } = self;
        match (self.started, self.namespace) {
            (Some(started), Some(namespace)) => format!("{pid} {name} {started} {namespace}"),
            _ => format!("{pid} {name}"),
        }
    }

    /// What [`words`](Self::words) wrote, with any others behind it.
    pub(crate) fn from_words(words: &[&str]) -> Option<Self> {
        let [pid, name, more @ ..] = words else {
            return None;
        };
        let mut owner = Self::new(pid.parse().ok()?, (*name).to_owned());
        if let [started, namespace, ..] = more
            && let (Ok(started), Ok(namespace)) = (started.parse(), namespace.parse())
        {
            owner.started = Some(started);
            owner.namespace = Some(namespace);
        }
        Some(owner)
    }
}

/// The name of this process, as the kernel has it (`comm`), with nothing in it but letters, digits and `-_./:`.
fn name() -> String {
    plain(&fs::read_to_string("/proc/self/comm").unwrap_or_default())
}

fn plain(name: &str) -> String {
    let plain = |c: char| match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' | '.' | '/' | ':' => c,
        _ => '_',
    };
    name.trim_end().chars().take(NAME).map(plain).collect()
}

fn pid_namespace() -> Option<u64> {
    Some(fs::metadata("/proc/self/ns/pid").ok()?.ino())
}

/// Whether `/proc` numbers processes as this one does: a process may see that of another pid namespace.
fn proc_is_ours() -> bool {
    let own = std::process::id().to_string();
    fs::read_link("/proc/self").is_ok_and(|link| link.as_os_str() == own.as_str())
}

struct Stat {
    name: String,
    ended: bool,
    started: u64,
}

/// What the kernel says of a process; none if there is none with this number.
fn stat(pid: &str) -> io::Result<Option<Stat>> {
    match fs::read(format!("/proc/{pid}/stat")) {
        Ok(bytes) => match parse(&String::from_utf8_lossy(&bytes)) {
            Some(stat) => Ok(Some(stat)),
            None => Err(io::ErrorKind::InvalidData.into()),
        },
        // It may end while it is read.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || error.raw_os_error() == Some(libc::ESRCH) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Reads a line of `/proc/PID/stat` (`proc_pid_stat(5)`). The name may have any character in it, also parentheses.
fn parse(text: &str) -> Option<Stat> {
    let (head, rest) = text.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // The third field of the line is the first here.
    let field = |number: usize| fields.get(number - 3).copied();
    let threads: u64 = field(20)?.parse().ok()?;
    let ended = match field(3)? {
        // A first thread that has ended before the others is shown in the same way.
        "Z" => threads <= 1,
        "X" | "x" => true,
        _ => false,
    };
    Some(Stat {
        name: name.to_owned(),
        ended,
        started: field(22)?.parse().ok()?,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn sleeper() -> (Child, Owner) {
        let child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let mut owner = Owner::current();
        owner.pid = child.id();
        owner.started = stat(&child.id().to_string())
            .unwrap()
            .map(|stat| stat.started);
        (child, owner)
    }

    #[test]
    fn a_process_lives_until_it_ends_and_another_with_its_number_is_not_it() {
        assert!(Owner::current().may_live());
        let (mut child, owner) = sleeper();
        assert!(owner.may_live());
        let mut earlier = owner.clone();
        earlier.started = owner.started.map(|started| started - 1);
        assert!(!earlier.may_live());
        // It may be called otherwise by now.
        let mut renamed = owner.clone();
        renamed.name = "other".to_owned();
        assert!(renamed.may_live());
        child.kill().unwrap();
        // Nobody has waited for it: it is a zombie.
        while owner.may_live() {
            std::thread::yield_now();
        }
        assert!(stat(&owner.pid.to_string()).unwrap().is_some());
        child.wait().unwrap();
        assert!(!owner.may_live());
    }

    #[test]
    fn without_its_start_a_process_is_known_by_its_name() {
        let (mut child, owner) = sleeper();
        // Until it has become the program its name is that of this one.
        while name_of(owner.pid) != "cat" {
            std::thread::yield_now();
        }
        assert!(Owner::new(owner.pid, "cat".to_owned()).may_live());
        assert!(!Owner::new(owner.pid, "dog".to_owned()).may_live());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!Owner::new(owner.pid, "cat".to_owned()).may_live());
    }

    fn name_of(pid: u32) -> String {
        stat(&pid.to_string()).unwrap().unwrap().name
    }

    #[test]
    fn a_process_of_another_pid_namespace_may_live() {
        let mut owner = Owner::current();
        owner.pid = u32::MAX;
        assert!(!owner.may_live());
        owner.namespace = owner.namespace.map(|inode| inode + 1);
        assert!(owner.may_live());
    }

    #[test]
    fn a_name_may_look_like_the_rest() {
        let line = "42 (a) Z 1 (b) S 1 42 42 0 -1 0 0 0 0 0 0 0 0 0 20 0 3 0 777 0 0";
        let stat = parse(line).unwrap();
        assert_eq!((stat.name.as_str(), stat.started), ("a) Z 1 (b", 777));
        assert!(!stat.ended);
        let leader = "42 (a) Z 1 42 42 0 -1 0 0 0 0 0 0 0 0 0 20 0 2 0 777 0 0";
        assert!(!parse(leader).unwrap().ended);
        let zombie = "42 (a) Z 1 42 42 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 777 0 0";
        assert!(parse(zombie).unwrap().ended);
        assert!(parse("42 (a").is_none());
    }
}
