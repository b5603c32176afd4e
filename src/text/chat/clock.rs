//! `strftime_now`: the local time by Python's format letters.

use minijinja::Error;

use super::limits::{charge, fail};

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A moment of the local calendar.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub year: i64,
    /// 0 is January.
    pub month: usize,
    pub day: u32,
    pub hour: u32,
    pub minute: u32,
    pub second: u32,
    /// 0 is Sunday.
    pub weekday: usize,
    /// 0 is 1 January.
    pub yearday: u32,
}

pub fn now() -> Moment {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seconds = since.map_or(0, |d| d.as_secs() as i64);
    local(seconds).unwrap_or_else(|| utc(seconds))
}

#[cfg(unix)]
fn local(seconds: i64) -> Option<Moment> {
    let time = seconds as libc::time_t;
    let mut parts = std::mem::MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both pointers are to live values of the right type, and `tm` is valid when all zero; the
    // result is looked at only if the call reports success.
    let tm = unsafe {
        if libc::localtime_r(&time, parts.as_mut_ptr()).is_null() {
            return None;
        }
        parts.assume_init()
    };
    Some(Moment {
        year: i64::from(tm.tm_year) + 1900,
        month: usize::try_from(tm.tm_mon).ok()?,
        day: u32::try_from(tm.tm_mday).ok()?,
        hour: u32::try_from(tm.tm_hour).ok()?,
        minute: u32::try_from(tm.tm_min).ok()?,
        second: u32::try_from(tm.tm_sec).ok()?,
        weekday: usize::try_from(tm.tm_wday).ok()?,
        yearday: u32::try_from(tm.tm_yday).ok()?,
    })
}

#[cfg(not(unix))]
fn local(_: i64) -> Option<Moment> {
    None
}

/// Days to a date by counting in eras of 400 years that start in March.
pub fn utc(seconds: i64) -> Moment {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400) as u32);
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 2 } else { march_month - 10 };
    let year = year_of_era + era * 400 + i64::from(month < 2);
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let yearday = if month >= 2 { of_year + 59 + i64::from(leap) } else { of_year - 306 };
    Moment {
        year,
        month: month as usize,
        day: day as u32,
        hour: rest / 3600,
        minute: rest / 60 % 60,
        second: rest % 60,
        weekday: (days + 4).rem_euclid(7) as usize,
        yearday: yearday as u32,
    }
}

pub fn strftime(format: &str, at: &Moment) -> Result<String, Error> {
    charge(format.len().saturating_mul(12))?;
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut letter = chars.next();
        // glibc's `%-d`: no leading zero.
        let bare = letter == Some('-');
        if bare {
            letter = chars.next();
        }
        let Some(letter) = letter else { return Err(fail("strftime_now: a format ends in '%'")) };
        let part = field(letter, at)?;
        let part = if bare { part.trim_start_matches(['0', ' ']) } else { &part };
        out.push_str(if bare && part.is_empty() { "0" } else { part });
    }
    Ok(out)
}

fn field(letter: char, at: &Moment) -> Result<String, Error> {
    let (day, month) = (DAYS.get(at.weekday).unwrap_or(&""), MONTHS.get(at.month).unwrap_or(&""));
    let twelve = (at.hour + 11) % 12 + 1;
    Ok(match letter {
        'Y' => at.year.to_string(),
        'y' => format!("{:02}", at.year.rem_euclid(100)),
        'm' => format!("{:02}", at.month + 1),
        'B' => (*month).to_owned(),
        'b' | 'h' => month.chars().take(3).collect(),
        'd' => format!("{:02}", at.day),
        'e' => format!("{:2}", at.day),
        'A' => (*day).to_owned(),
        'a' => day.chars().take(3).collect(),
        'w' => at.weekday.to_string(),
        'u' => (if at.weekday == 0 { 7 } else { at.weekday }).to_string(),
        'H' => format!("{:02}", at.hour),
        'I' => format!("{twelve:02}"),
        'M' => format!("{:02}", at.minute),
        'S' => format!("{:02}", at.second),
        'f' => "000000".to_owned(),
        'p' => (if at.hour < 12 { "AM" } else { "PM" }).to_owned(),
        'j' => format!("{:03}", at.yearday + 1),
        'z' | 'Z' => String::new(),
        'F' => strftime("%Y-%m-%d", at)?,
        'D' | 'x' => strftime("%m/%d/%y", at)?,
        'T' | 'X' => strftime("%H:%M:%S", at)?,
        'R' => strftime("%H:%M", at)?,
        'c' => strftime("%a %b %e %H:%M:%S %Y", at)?,
        'n' => "\n".to_owned(),
        't' => "\t".to_owned(),
        '%' => "%".to_owned(),
        other => return Err(fail(format!("strftime_now: unknown format %{other}"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let rows = [
            (0, "1970-01-01 Thu 001 00:00:00"),
            (951_782_400, "2000-02-29 Tue 060 00:00:00"),
            (1_735_689_599, "2024-12-31 Tue 366 23:59:59"),
            (4_102_444_800, "2100-01-01 Fri 001 00:00:00"),
        ];
        for (seconds, expected) in rows {
            assert_eq!(strftime("%Y-%m-%d %a %j %H:%M:%S", &utc(seconds)).unwrap(), expected);
        }
        assert_eq!(strftime("%-d %B %y %I%p%%", &utc(0)).unwrap(), "1 January 70 12AM%");
        assert!(strftime("%", &utc(0)).is_err() && strftime("%Q", &utc(0)).is_err());
    }
}
