//! `strftime_now`: the local time by those of Python's format letters that mean the same everywhere.

use jiff::ZonedDateTime;
use jiff::civil::DateTime;
use jiff::fmt::strtime;
use minijinja::Error;

use super::limits::{charge, fail};

/// Letters that jiff and Python's `strftime` in the C locale write alike, with `-` for no leading zero.
const LETTERS: &str = "aAbBdeFhHIjmMnpRStTuUwWyY%";

pub fn strftime_now(format: &str) -> Result<String, Error> {
    strftime(format, ZonedDateTime::now().datetime())
}

fn strftime(format: &str, at: DateTime) -> Result<String, Error> {
    charge(format.len().saturating_mul(12))?;
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        let letter = match (c, chars.clone().next()) {
            ('%', Some('-')) => chars.nth(1),
            ('%', _) => chars.next(),
            _ => continue,
        };
        match letter {
            Some(letter) if LETTERS.contains(letter) => {}
            Some(letter) => return Err(fail(format!("strftime_now: unknown format %{letter}"))),
            None => return Err(fail("strftime_now: a format ends in '%'")),
        }
    }
    strtime::format(format, at).map_err(|e| fail(format!("strftime_now: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected: Python's `datetime.strftime`.
    #[test]
    fn dates() {
        let rows = [
            ((1970, 1, 1, 0, 0, 0), "1970-01-01 Thu 001 00:00:00"),
            ((2000, 2, 29, 0, 0, 0), "2000-02-29 Tue 060 00:00:00"),
            ((2024, 12, 31, 23, 59, 59), "2024-12-31 Tue 366 23:59:59"),
            ((2100, 1, 1, 13, 5, 0), "2100-01-01 Fri 001 13:05:00"),
        ];
        for ((y, mo, d, h, mi, s), expected) in rows {
            let at = jiff::civil::date(y, mo, d).at(h, mi, s, 0);
            assert_eq!(strftime("%Y-%m-%d %a %j %H:%M:%S", at).unwrap(), expected);
        }
        let at = jiff::civil::date(2026, 3, 5).at(0, 7, 9, 0);
        let all = strftime("%-d %e %B %b %y %I%p %F %T %R %A %u %w %h %U %W %-m%n%t%%", at).unwrap();
        assert_eq!(all, "5  5 March Mar 26 12AM 2026-03-05 00:07:09 00:07 Thursday 4 4 Mar 09 09 3\n\t%");
        for wrong in ["%", "%-", "%Q", "%c", "%x", "%99d"] {
            assert!(strftime(wrong, at).is_err(), "{wrong}");
        }
    }
}
