use std::collections::HashSet;

use super::*;

#[test]
fn names_and_numbers_are_unique() {
    let mut names = HashSet::new();
    let mut numbers = HashSet::new();
    for option in all() {
        for name in [Some(option.name), option.alias].into_iter().flatten() {
            // The multicast options are of two levels.
            let key = (
                name,
                name.starts_with("MCAST_")
                    .then_some(option.number + option.level.number()),
            );
            assert!(names.insert(key), "{name}");
        }
        let key = (option.level.number(), option.number);
        assert!(numbers.insert(key), "{}", option.name);
    }
}

#[test]
fn what_is_not_carried_says_why() {
    for option in all() {
        assert!(
            option.fate == Fate::Carried || !option.note.is_empty(),
            "{}",
            option.name
        );
    }
}

/// What Linux 6.18 knows and the headers of Debian 12 (6.1) do not have, from `include/uapi`.
#[test]
fn options_newer_than_the_headers_are_there() {
    let newer: [(Level, &[(i32, &str)]); 2] = [
        (
            Level::Socket,
            &[
                (76, "SO_PASSPIDFD"),
                (77, "SO_PEERPIDFD"),
                (78, "SO_DEVMEM_LINEAR"),
                (79, "SO_DEVMEM_DMABUF"),
                (80, "SO_DEVMEM_DONTNEED"),
                (82, "SO_RCVPRIORITY"),
                (83, "SO_PASSRIGHTS"),
                (84, "SO_INQ"),
            ],
        ),
        (
            Level::Tcp,
            &[
                (38, "TCP_AO_ADD_KEY"),
                (39, "TCP_AO_DEL_KEY"),
                (40, "TCP_AO_INFO"),
                (41, "TCP_AO_GET_KEYS"),
                (42, "TCP_AO_REPAIR"),
                (43, "TCP_IS_MPTCP"),
                (44, "TCP_RTO_MAX_MS"),
                (45, "TCP_RTO_MIN_US"),
                (46, "TCP_DELACK_MAX_US"),
            ],
        ),
    ];
    for (level, options) in newer {
        for (number, name) in options {
            let option = KnownOption::named(name).unwrap_or_else(|| panic!("{name}"));
            assert_eq!((option.level, option.number), (level, *number), "{name}");
        }
    }
}

/// Names of the headers that are not options: values, flags, and kinds of control messages.
fn is_no_option(name: &str) -> bool {
    const PREFIXES: [&str; 14] = [
        "IPV6_FL_",
        "IPV6_FLOWINFO_FLOWLABEL",
        "IPV6_FLOWINFO_PRIORITY",
        "IPV6_PRIORITY_",
        "IPV6_PMTUDISC_",
        "IPV6_PREFER_SRC_",
        "IPV6_TLV_",
        "IP_PMTUDISC_",
        "IP_DEFAULT_MULTICAST_",
        "MCAST_EXCLUDE",
        "MCAST_INCLUDE",
        "TCP_MSS_D",
        "TCP_MD5SIG_",
        "TCP_RECEIVE_ZEROCOPY_FLAG_",
    ];
    const NAMES: [&str; 4] = [
        "TCP_REPAIR_ON",
        "TCP_REPAIR_OFF",
        "TCP_REPAIR_OFF_NO_WP",
        "TCP_AO_KEYF_IFINDEX",
    ];
    name != "TCP_MD5SIG_EXT"
        && (NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
}

#[test]
fn the_tables_have_every_option_of_the_installed_headers() {
    let headers: [(&str, &[&str]); 4] = [
        ("asm-generic/socket.h", &["SO_"]),
        ("linux/in.h", &["IP_", "MCAST_"]),
        ("linux/in6.h", &["IPV6_"]),
        ("linux/tcp.h", &["TCP_"]),
    ];
    let mut found = 0;
    for (header, prefixes) in headers {
        let path = format!("/usr/include/{header}");
        // Installed wherever something is linked (libc6-dev of Debian wants linux-libc-dev).
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some("#define"), Some(name), Some(value)) =
                (words.next(), words.next(), words.next())
            else {
                continue;
            };
            if !prefixes.iter().any(|prefix| name.starts_with(prefix)) || is_no_option(name) {
                continue;
            }
            let named = KnownOption::named(name);
            let number = value
                .parse()
                .ok()
                .or_else(|| Some(KnownOption::named(value)?.number));
            let Some(number) = number else { continue };
            let option = named.unwrap_or_else(|| panic!("{header} has {name}, the tables do not"));
            assert_eq!(option.number, number, "{name}");
            found += 1;
        }
    }
    assert!(found > 150, "{found} options found in the headers");
}
