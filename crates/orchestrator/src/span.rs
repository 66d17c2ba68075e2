//! Spans of time as people write them: `30d`, `12h`, `90s`.

use std::time::Duration;

/// Letters and their seconds.
const UNITS: [(&str, u64); 5] = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400), ("w", 604_800)];

/// Reads a span.
///
/// # Errors
/// How to write one.
pub fn parse(text: &str) -> Result<Duration, String> {
    let how = || format!("`{text}` is no span of time: write a whole number and s, m, h, d or w, such as 30d");
    let (number, seconds) = UNITS.iter().find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, *seconds))).ok_or_else(how)?;
    let number: u64 = number.parse().map_err(|_| how())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(how)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_a_number_and_a_letter() {
        assert_eq!(parse("30d"), Ok(Duration::from_secs(30 * 86_400)));
        assert_eq!(parse("90s"), Ok(Duration::from_secs(90)));
        for text in ["", "d", "30", "-1d", "1.5h", "1y", "1dd", "99999999999999999999w", "9999999999999999999w"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
