//! A schedule's five fields as sets, and the moments that they name.

use jiff::civil::{Date, DateTime, Weekday};
use jiff::{ToSpan, Zoned};

/// When something is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calendar {
    minutes: Vec<i8>,
    hours: Vec<i8>,
    days: Vec<i8>,
    months: Vec<i8>,
    /// 0 is Sunday.
    weekdays: Vec<i8>,
}

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
/// No schedule that ever comes waits longer: the 29th of February may be eight years off.
const DAYS_AHEAD: i32 = 366 * 9;

impl Calendar {
    /// Reads five fields that [`super::check`] has found right; none otherwise.
    pub fn new(schedule: &str) -> Option<Self> {
        let fields: Vec<&str> = schedule.split([' ', '\t']).filter(|field| !field.is_empty()).collect();
        let [minutes, hours, days, months, weekdays] = fields.as_slice() else { return None };
        let mut weekdays = expand(weekdays, 0, 7, &WEEKDAYS, 0)?;
        weekdays.iter_mut().for_each(|day| *day %= 7);
        weekdays.sort_unstable();
        weekdays.dedup();
        Some(Self {
            minutes: expand(minutes, 0, 59, &[], 0)?,
            hours: expand(hours, 0, 23, &[], 0)?,
            days: expand(days, 1, 31, &[], 0)?,
            months: expand(months, 1, 12, &MONTHS, 1)?,
            weekdays,
        })
    }

    /// The first moment after `now`; none for a day that never comes, such as the 30th of February.
    pub fn after(&self, now: &Zoned) -> Option<Zoned> {
        let (mut date, now_time) = (now.date(), now.datetime());
        for _ in 0..DAYS_AHEAD {
            let due = if self.has(date) { self.first_of(date, now_time) } else { None };
            // A time that the clock jumps over in spring comes when it has jumped.
            if let Some(due) = due.and_then(|due| due.to_zoned(now.time_zone().clone()).ok()).filter(|due| due > now) {
                return Some(due);
            }
            date = date.checked_add(1.day()).ok()?;
        }
        None
    }

    fn first_of(&self, date: Date, after: DateTime) -> Option<DateTime> {
        let times = self.hours.iter().flat_map(|hour| self.minutes.iter().map(move |minute| date.at(*hour, *minute, 0, 0)));
        times.into_iter().find(|due| *due > after)
    }

    /// As cron has it: where day and weekday are both given, one of them is enough.
    fn has(&self, date: Date) -> bool {
        let (day, weekday) = (self.days.contains(&date.day()), self.weekdays.contains(&date.weekday().to_sunday_zero_offset()));
        let either = self.days.len() < 31 && self.weekdays.len() < 7;
        self.months.contains(&date.month()) && if either { day || weekday } else { day && weekday }
    }

    /// As `OnCalendar=` of systemd has it; two lines where one of two kinds of days is enough.
    pub fn systemd(&self) -> Vec<String> {
        let list = |values: &[i8], all: usize| {
            let numbers = || values.iter().map(|value| format!("{value:02}")).collect::<Vec<_>>().join(",");
            if values.len() == all { "*".to_owned() } else { numbers() }
        };
        let (minutes, hours) = (list(&self.minutes, 60), list(&self.hours, 24));
        let (days, months) = (list(&self.days, 31), list(&self.months, 12));
        let weekdays: Vec<String> = self.weekdays.iter().map(|day| name(*day)).collect();
        let line = |weekdays: &str, days: &str| format!("{weekdays}*-{months}-{days} {hours}:{minutes}:00");
        let of_week = format!("{} ", weekdays.join(","));
        match (self.days.len() < 31, self.weekdays.len() < 7) {
            (true, true) => vec![line("", &days), line(&of_week, "*")],
            (_, true) => vec![line(&of_week, "*")],
            _ => vec![line("", &days)],
        }
    }
}

fn name(weekday: i8) -> String {
    let day = Weekday::from_sunday_zero_offset(weekday).unwrap_or(Weekday::Sunday);
    format!("{day:?}")[..3].to_owned()
}

/// The values of a field: lists of numbers, names, ranges and steps.
fn expand(field: &str, low: i8, high: i8, names: &[&str], first: i8) -> Option<Vec<i8>> {
    let value = |text: &str| -> Option<i8> {
        let named = names.iter().position(|name| text.eq_ignore_ascii_case(name)).and_then(|index| i8::try_from(index).ok());
        named.map(|index| index + first).or_else(|| text.parse().ok()).filter(|value| (low..=high).contains(value))
    };
    let mut values = Vec::new();
    for part in field.split(',') {
        let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
        let (from, to) = match range.split_once('-') {
            Some((from, to)) => (value(from)?, value(to)?),
            // Sunday has two numbers: a star counts it once.
            None if range == "*" => (low, if names.len() == 7 { 6 } else { high }),
            None => (value(range)?, if step.is_some() { high } else { value(range)? }),
        };
        let step = step.map_or(Some(1), |step| step.parse::<usize>().ok().filter(|step| *step > 0))?;
        values.extend((from..=to).step_by(step));
    }
    values.sort_unstable();
    values.dedup();
    Some(values).filter(|values| !values.is_empty())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn after(schedule: &str, now: &str) -> String {
        let now: Zoned = format!("{now}[Europe/Berlin]").parse().unwrap();
        Calendar::new(schedule).unwrap().after(&now).map_or_else(|| "never".into(), |due| due.datetime().to_string())
    }

    #[test]
    fn the_next_moment_is_the_one_cron_would_start_at() {
        for (schedule, now, due) in [
            ("15 2 * * *", "2026-03-01T02:14:59", "2026-03-01T02:15:00"),
            ("15 2 * * *", "2026-03-01T02:15:00", "2026-03-02T02:15:00"),
            ("*/20 * * * *", "2026-12-31T23:45:00", "2027-01-01T00:00:00"),
            ("0 9 * * mon-fri", "2026-11-20T10:00:00", "2026-11-23T09:00:00"),
            ("0 0 13 * fri", "2026-11-24T00:00:00", "2026-11-27T00:00:00"),
            ("0 0 29 feb *", "2026-03-01T00:00:00", "2028-02-29T00:00:00"),
            ("0 0 * * 7", "2026-11-24T00:00:00", "2026-11-29T00:00:00"),
            ("0 0 30 2 *", "2026-11-24T00:00:00", "never"),
            // The clock jumps from 2:00 to 3:00 on 29 March.
            ("30 2 * * *", "2026-03-29T01:00:00", "2026-03-29T03:30:00"),
        ] {
            assert_eq!(after(schedule, now), due, "{schedule} after {now}");
        }
    }

    #[test]
    fn systemd_gets_the_same_moments() {
        let systemd = |schedule: &str| Calendar::new(schedule).unwrap().systemd();
        assert_eq!(systemd("15 2 * * *"), ["*-*-* 02:15:00"]);
        assert_eq!(systemd("*/30 * * jan,feb *"), ["*-01,02-* *:00,30:00"]);
        assert_eq!(systemd("0 9 * * 0-2"), ["Sun,Mon,Tue *-*-* 09:00:00"]);
        assert_eq!(systemd("0 0 13 * fri"), ["*-*-13 00:00:00", "Fri *-*-* 00:00:00"]);
    }
}
