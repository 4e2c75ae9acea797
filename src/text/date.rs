//! The date that templates are told, and `strftime`. In: a day. Out: text as Python's `datetime.strftime` with glibc writes it in the C locale.

/// A day, at noon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Date {
    year: u32,
    /// 1 to 12.
    month: u32,
    /// 1 to 31.
    day: u32,
}

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
/// From Sunday.
const WEEKDAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

impl Date {
    /// The day that Llama 3's template falls back to.
    pub const FIXED: Date = Date { year: 2024, month: 7, day: 26 };

    /// `2024-07-26`, `26 Jul 2024` or `26 July 2024`; `None` for anything else.
    pub fn parse(text: &str) -> Option<Date> {
        let text = text.trim();
        let number = |part: &str| {
            part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse::<u32>().ok())?
        };
        let (year, month, day) = if let [year, month, day] = text.split('-').collect::<Vec<_>>()[..]
        {
            (number(year)?, number(month)?, number(day)?)
        } else if let [day, month, year] = text.split_whitespace().collect::<Vec<_>>()[..] {
            let named = |name: &&str| {
                name.eq_ignore_ascii_case(month) || name[..3].eq_ignore_ascii_case(month)
            };
            (number(year)?, MONTHS.iter().position(named)? as u32 + 1, number(day)?)
        } else {
            return None;
        };
        let date = Date { year, month, day };
        ((1000..=9999).contains(&year)
            && (1..=12).contains(&month)
            && day >= 1
            && day <= date.days_in(month))
        .then_some(date)
    }

    fn is_leap(self) -> bool {
        self.year.is_multiple_of(4)
            && (!self.year.is_multiple_of(100) || self.year.is_multiple_of(400))
    }

    fn days_in(self, month: u32) -> u32 {
        match month {
            4 | 6 | 9 | 11 => 30,
            2 if self.is_leap() => 29,
            2 => 28,
            _ => 31,
        }
    }

    /// 1 to 366.
    fn day_of_year(self) -> u32 {
        (1..self.month).map(|month| self.days_in(month)).sum::<u32>() + self.day
    }

    /// 0 (Sunday) to 6: days since 1 January of the year 1, a Monday.
    fn weekday(self) -> u32 {
        let years = self.year - 1;
        (years * 365 + years / 4 - years / 100 + years / 400 + self.day_of_year()) % 7
    }

    /// Year and number of the week of ISO 8601: the first week has the year's first Thursday.
    fn iso_week(self) -> (u32, u32) {
        let from_monday = (self.weekday() + 6) % 7;
        let week = (self.day_of_year() + 9 - from_monday) / 7;
        let long = |year: u32| {
            let first = Date { year, month: 1, day: 1 };
            first.weekday() == 4 || (first.is_leap() && first.weekday() == 3)
        };
        let weeks = |year: u32| if long(year) { 53 } else { 52 };
        match week {
            0 => (self.year - 1, weeks(self.year - 1)),
            week if week > weeks(self.year) => (self.year + 1, 1),
            week => (self.year, week),
        }
    }

    /// This day at noon UTC in the form of `format`; an error names the directive that is not known.
    pub fn format(self, format: &str) -> Result<String, String> {
        let mut out = String::new();
        let mut letters = format.chars();
        while let Some(letter) = letters.next() {
            if letter != '%' {
                out.push(letter);
                continue;
            }
            // glibc's flags: `-` no padding, `_` spaces, `0` zeros, `^` capitals, `#` the other case.
            let mut flags = String::new();
            let directive = loop {
                match letters.next() {
                    Some(flag @ ('-' | '_' | '0' | '^' | '#')) => flags.push(flag),
                    other => break other,
                }
            };
            let text = match directive.and_then(|directive| self.directive(directive)) {
                Some(text) => text,
                None => {
                    let directive = directive.map_or_else(String::new, String::from);
                    return Err(format!("%{flags}{directive} is not supported"));
                }
            };
            out.push_str(&flagged(text, &flags));
        }
        Ok(out)
    }

    fn directive(self, directive: char) -> Option<Text> {
        let month = MONTHS.get(self.month as usize - 1)?;
        let weekday = WEEKDAYS.get(self.weekday() as usize)?;
        let number = |value, width| Some(Text::Number { value, width, pad: '0' });
        let spaced = |value, width| Some(Text::Number { value, width, pad: ' ' });
        let words = |text: String| Some(Text::Words(text));
        let all = |format| self.format(format).ok().map(Text::Words);
        match directive {
            'a' => words(weekday[..3].into()),
            'A' => words((*weekday).into()),
            'b' | 'h' => words(month[..3].into()),
            'B' => words((*month).into()),
            'c' => all("%a %b %e %H:%M:%S %Y"),
            'C' => number(self.year / 100, 2),
            'd' => number(self.day, 2),
            'D' | 'x' => all("%m/%d/%y"),
            'e' => spaced(self.day, 2),
            'f' => number(0, 6),
            'F' => all("%Y-%m-%d"),
            'g' => number(self.iso_week().0 % 100, 2),
            'G' => number(self.iso_week().0, 4),
            'H' | 'I' => number(12, 2),
            'j' => number(self.day_of_year(), 3),
            'k' | 'l' => spaced(12, 2),
            'm' => number(self.month, 2),
            'M' | 'S' => number(0, 2),
            'n' => words("\n".into()),
            'p' => words("PM".into()),
            'P' => words("pm".into()),
            'r' => all("%I:%M:%S %p"),
            'R' => all("%H:%M"),
            't' => words("\t".into()),
            'T' | 'X' => all("%H:%M:%S"),
            'u' => number((self.weekday() + 6) % 7 + 1, 1),
            'U' => number((self.day_of_year() + 6 - self.weekday()) / 7, 2),
            'V' => number(self.iso_week().1, 2),
            'w' => number(self.weekday(), 1),
            'W' => number((self.day_of_year() + 6 - (self.weekday() + 6) % 7) / 7, 2),
            'y' => number(self.year % 100, 2),
            'Y' => number(self.year, 4),
            'z' => words("+0000".into()),
            'Z' => words("UTC".into()),
            '%' => words("%".into()),
            _ => None,
        }
    }
}

/// What a directive stands for, before flags.
enum Text {
    Number { value: u32, width: usize, pad: char },
    Words(String),
}

fn flagged(text: Text, flags: &str) -> String {
    let text = match text {
        Text::Words(text) => text,
        Text::Number { value, width, pad } => {
            match flags.chars().rfind(|flag| matches!(flag, '-' | '_' | '0')) {
                Some('-') => value.to_string(),
                Some('_') => format!("{value:width$}"),
                Some(_) => format!("{value:0width$}"),
                None if pad == ' ' => format!("{value:width$}"),
                None => format!("{value:0width$}"),
            }
        }
    };
    match flags.chars().rfind(|flag| matches!(flag, '^' | '#')) {
        Some('#') if text == "PM" || text == "UTC" => text.to_lowercase(),
        Some(_) => text.to_uppercase(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_and_flags_are_those_of_glibc() {
        let day = |text: &str| Date::parse(text).unwrap();
        for (date, format, expected) in [
            // What `date -u -d 'DATE 12:00' +FORMAT` prints with LC_ALL=C.
            (
                "2024-07-26",
                "%d %b %Y|%-d %B %y|%A %a|%j|%H:%M:%S %p|%F %T",
                "26 Jul 2024|26 July 24|Friday Fri|208|12:00:00 PM|2024-07-26 12:00:00",
            ),
            (
                "2021-01-03",
                "%d %-d %_d %e %0e %m %-m|%G-W%V-%u %g|%U %W %w",
                "03 3  3  3 03 01 1|2020-W53-7 20|01 00 0",
            ),
            ("2020-12-31", "%j %-j|%G-W%V-%u|%U %W", "366 366|2020-W53-4|52 52"),
            (
                "2019-12-30",
                "%G-W%V|%D|%x|%R|%r|%c",
                "2020-W01|12/30/19|12/30/19|12:00|12:00:00 PM|Mon Dec 30 12:00:00 2019",
            ),
            ("2000-02-29", "%C %^a %^B %#p %P %k %l%n%t%%", "20 TUE FEBRUARY pm pm 12 12\n\t%"),
            ("2024-07-26", "%z %Z %f", "+0000 UTC 000000"),
        ] {
            assert_eq!(day(date).format(format).as_deref(), Ok(expected), "{date} {format}");
        }
        for bad in ["%Q", "%", "%-", "%-Q", "%é"] {
            assert!(Date::FIXED.format(bad).unwrap_err().contains(bad), "{bad}");
        }
    }

    #[test]
    fn a_date_is_read_in_the_forms_that_templates_write() {
        assert_eq!(Date::parse("2024-07-26"), Some(Date::FIXED));
        assert_eq!(Date::parse(" 26 Jul 2024 "), Some(Date::FIXED));
        assert_eq!(Date::parse("26 july 2024"), Some(Date::FIXED));
        for bad in [
            "",
            "today",
            "2024-13-01",
            "2023-02-29",
            "2024-00-10",
            "0-1-1",
            "26 Ju 2024",
            "26 Jul 99999",
            "+2024-07-26",
            "2024-07-26-1",
        ] {
            assert_eq!(Date::parse(bad), None, "{bad}");
        }
    }
}
