//! Times in texts about certificates, for people.

/// The text with each time that rustls writes as seconds since 1970 as a date.
///
/// Which of two hosts has the wrong clock, or whose certificate was not renewed, is seen from dates alone.
pub(crate) fn readable(text: &str) -> String {
    // What comes before such a number in the messages about validity.
    const BEFORE: [&str; 3] = ["time ", "after ", "before "];
    let mut readable = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        let (head, tail) = rest.split_at(at);
        let end = tail
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (number, after) = tail.split_at(end);
        readable += head;
        let is_time = BEFORE.iter().any(|before| head.ends_with(before));
        match number.parse().ok().filter(|_| is_time).and_then(date) {
            Some(date) => {
                readable += &date;
                rest = after.strip_prefix(" (UNIX)").unwrap_or(after);
            }
            None => {
                readable += number;
                rest = after;
            }
        }
    }
    readable + rest
}

/// `2026-11-29 01:36:05 UTC`; `None` after the year 9999, when no certificate is valid any more.
fn date(seconds: u64) -> Option<String> {
    let (mut days, second) = (seconds / 86_400, seconds % 86_400);
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let (mut year, mut month) = (1970, 1);
    loop {
        let in_year = if leap(year) { 366 } else { 365 };
        if days < in_year {
            break;
        }
        days -= in_year;
        year += 1;
        if year > 9999 {
            return None;
        }
    }
    loop {
        let in_month = match month {
            2 if leap(year) => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        if days < in_month {
            break;
        }
        days -= in_month;
        month += 1;
    }
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let day = days + 1;
    Some(format!(
        "{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_become_dates_and_other_numbers_stay() {
        assert_eq!(
            readable(
                "certificate expired: verification time 1795920965 (UNIX), but certificate is not valid after 1795917365 (3600 seconds ago)"
            ),
            "certificate expired: verification time 2026-11-29 02:56:05 UTC, but certificate is not valid after 2026-11-29 01:56:05 UTC (3600 seconds ago)"
        );
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
            (253_402_300_799, "9999-12-31 23:59:59 UTC"),
        ] {
            assert_eq!(date(seconds).as_deref(), Some(text));
        }
        for strange in [
            "after 99999999999999999999",
            "after 253402300800",
            "",
            "7 after",
        ] {
            assert_eq!(readable(strange), strange);
        }
    }
}
