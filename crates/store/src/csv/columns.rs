//! Fields to typed columns: what a column can be, and building it.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanBuilder, Date32Builder, Float64Builder, Int64Builder, StringBuilder, TimestampMicrosecondBuilder};
use arrow::compute::kernels::cast_utils::Parser;
use arrow::datatypes::{DataType, Date32Type, TimeUnit, TimestampMicrosecondType};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ColumnType {
    /// Whole numbers of 64 bits.
    #[serde(alias = "integer", alias = "int")]
    Int64,
    /// Numbers of 64 bits.
    #[serde(alias = "float", alias = "number")]
    Float64,
    /// True or false.
    #[serde(alias = "boolean")]
    Bool,
    /// Text.
    #[serde(alias = "text", alias = "string")]
    Utf8,
    /// A day: 2026-01-31.
    Date,
    /// A moment: 2026-01-31T12:30:00; UTC where it has an offset.
    Datetime,
}

impl ColumnType {
    /// In Arrow.
    pub(crate) fn arrow(self) -> DataType {
        match self {
            Self::Int64 => DataType::Int64,
            Self::Float64 => DataType::Float64,
            Self::Bool => DataType::Boolean,
            Self::Utf8 => DataType::Utf8,
            Self::Date => DataType::Date32,
            Self::Datetime => DataType::Timestamp(TimeUnit::Microsecond, None),
        }
    }

    /// Its name in TOML, with an article.
    pub(crate) fn described(self) -> &'static str {
        match self {
            Self::Int64 => "a whole number of 64 bits (int64)",
            Self::Float64 => "a number (float64)",
            Self::Bool => "true or false (bool)",
            Self::Utf8 => "text (utf8)",
            Self::Date => "a date such as 2026-01-31 (date)",
            Self::Datetime => "a moment such as 2026-01-31T12:30:00 (datetime)",
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Int64 => "int64",
            Self::Float64 => "float64",
            Self::Bool => "bool",
            Self::Utf8 => "utf8",
            Self::Date => "date",
            Self::Datetime => "datetime",
        }
    }
}

/// How values are written.
#[derive(Debug, Clone)]
pub(crate) struct Values {
    /// Texts that stand for a missing value.
    pub(crate) null: Vec<String>,
    /// What stands before the fraction.
    pub(crate) decimal: char,
}

impl Values {
    pub(crate) fn is_null(&self, field: &str) -> bool {
        self.null.iter().any(|null| null == field)
    }

    fn float(&self, field: &str) -> Option<f64> {
        let starts_as_number = field.bytes().next().is_some_and(|byte| byte.is_ascii_digit() || b"+-.,".contains(&byte));
        let special = matches!(field, "NaN" | "nan" | "inf" | "-inf" | "Inf" | "-Inf");
        // Rust would also take `infinity`, `+nan` and the like, which are words elsewhere.
        if !(special || starts_as_number && field.bytes().all(|byte| byte.is_ascii_digit() || b"+-.,eE".contains(&byte))) {
            return None;
        }
        match self.decimal {
            '.' => field.parse().ok(),
            // With a decimal comma, a dot stands between thousands or is a mistake.
            _ if field.contains('.') => None,
            decimal => field.replace(decimal, ".").parse().ok(),
        }
    }
}

/// A day, strictly `2026-01-31`.
fn date(field: &str) -> Option<i32> {
    let shape = |(index, byte): (usize, u8)| if [4, 7].contains(&index) { byte == b'-' } else { byte.is_ascii_digit() };
    (field.len() == 10 && field.bytes().enumerate().all(shape)).then(|| Date32Type::parse(field)).flatten()
}

/// A moment, in microseconds: a day, `T` or a blank, a time.
fn datetime(field: &str) -> Option<i64> {
    let bytes = field.as_bytes();
    (bytes.len() > 13 && matches!(bytes[10], b'T' | b' ') && field.is_char_boundary(10) && date(&field[..10]).is_some())
        .then(|| TimestampMicrosecondType::parse(field))
        .flatten()
}

fn bool_strict(field: &str) -> Option<bool> {
    match field {
        "true" | "True" | "TRUE" => Some(true),
        "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

fn bool_declared(field: &str) -> Option<bool> {
    match field.to_ascii_lowercase().as_str() {
        "true" | "t" | "yes" | "y" | "1" => Some(true),
        "false" | "f" | "no" | "n" | "0" => Some(false),
        _ => None,
    }
}

/// What a column can still be, after the values seen so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidates {
    pub(crate) any: bool,
    int64: bool,
    float64: bool,
    bool: bool,
    date: bool,
    datetime: bool,
}

impl Candidates {
    pub(crate) fn all() -> Self {
        Self { any: false, int64: true, float64: true, bool: true, date: true, datetime: true }
    }

    /// Takes one value that is not missing into account.
    pub(crate) fn see(&mut self, field: &str, values: &Values) {
        self.any = true;
        if self.float64 {
            let digits = field.trim_start_matches(['+', '-']);
            let whole = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            // 00123 is a code and no number: as a number it would lose its zeros. So would an id of twenty digits.
            let code = whole && (digits.len() > 1 && digits.starts_with('0') || field.parse::<i64>().is_err());
            self.int64 &= whole && !code;
            self.float64 &= whole && !code || !whole && values.float(field).is_some();
        }
        self.int64 &= self.float64;
        self.bool = self.bool && bool_strict(field).is_some();
        self.date = self.date && date(field).is_some();
        self.datetime = self.datetime && (datetime(field).is_some() || date(field).is_some());
    }

    pub(crate) fn merge(self, other: Self) -> Self {
        Self {
            any: self.any || other.any,
            int64: self.int64 && other.int64,
            float64: self.float64 && other.float64,
            bool: self.bool && other.bool,
            date: self.date && other.date,
            datetime: self.datetime && other.datetime,
        }
    }

    /// The narrowest type that holds all values; text when there were none.
    pub(crate) fn narrowest(self) -> ColumnType {
        match self {
            Self { any: false, .. } => ColumnType::Utf8,
            Self { int64: true, .. } => ColumnType::Int64,
            Self { float64: true, .. } => ColumnType::Float64,
            Self { bool: true, .. } => ColumnType::Bool,
            Self { date: true, .. } => ColumnType::Date,
            Self { datetime: true, .. } => ColumnType::Datetime,
            _ => ColumnType::Utf8,
        }
    }
}

/// A column being built.
pub(crate) enum Builder {
    Int64(Int64Builder),
    Float64(Float64Builder),
    Bool(BooleanBuilder),
    Utf8(StringBuilder),
    Date(Date32Builder),
    Datetime(TimestampMicrosecondBuilder),
}

impl Builder {
    pub(crate) fn new(kind: ColumnType) -> Self {
        match kind {
            ColumnType::Int64 => Self::Int64(Int64Builder::new()),
            ColumnType::Float64 => Self::Float64(Float64Builder::new()),
            ColumnType::Bool => Self::Bool(BooleanBuilder::new()),
            ColumnType::Utf8 => Self::Utf8(StringBuilder::new()),
            ColumnType::Date => Self::Date(Date32Builder::new()),
            ColumnType::Datetime => Self::Datetime(TimestampMicrosecondBuilder::new()),
        }
    }

    /// Adds a field; false when it is no value of this type.
    pub(crate) fn push(&mut self, field: &str, values: &Values) -> bool {
        if values.is_null(field) {
            self.push_null();
            return true;
        }
        // A field that does not fit is added as missing; the caller stops on it anyway.
        match self {
            Self::Int64(builder) => append(field.parse().ok(), |value| builder.append_option(value)),
            Self::Float64(builder) => append(values.float(field), |value| builder.append_option(value)),
            Self::Bool(builder) => append(bool_declared(field), |value| builder.append_option(value)),
            Self::Date(builder) => append(date(field), |value| builder.append_option(value)),
            Self::Datetime(builder) => {
                let moment = datetime(field).or_else(|| date(field).map(|days| i64::from(days) * 86_400_000_000));
                append(moment, |value| builder.append_option(value))
            }
            Self::Utf8(builder) => {
                builder.append_value(field);
                true
            }
        }
    }

    fn push_null(&mut self) {
        match self {
            Self::Int64(builder) => builder.append_null(),
            Self::Float64(builder) => builder.append_null(),
            Self::Bool(builder) => builder.append_null(),
            Self::Utf8(builder) => builder.append_null(),
            Self::Date(builder) => builder.append_null(),
            Self::Datetime(builder) => builder.append_null(),
        }
    }

    pub(crate) fn finish(self) -> ArrayRef {
        match self {
            Self::Int64(mut builder) => Arc::new(builder.finish()),
            Self::Float64(mut builder) => Arc::new(builder.finish()),
            Self::Bool(mut builder) => Arc::new(builder.finish()),
            Self::Utf8(mut builder) => Arc::new(builder.finish()),
            Self::Date(mut builder) => Arc::new(builder.finish()),
            Self::Datetime(mut builder) => Arc::new(builder.finish()),
        }
    }
}

fn append<T>(value: Option<T>, add: impl FnOnce(Option<T>)) -> bool {
    let fits = value.is_some();
    add(value);
    fits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Values {
        Values { null: vec![String::new(), "NA".into()], decimal: '.' }
    }

    fn inferred(fields: &[&str]) -> ColumnType {
        let mut candidates = Candidates::all();
        fields.iter().filter(|field| !values().is_null(field)).for_each(|field| candidates.see(field, &values()));
        candidates.narrowest()
    }

    #[test]
    fn a_column_gets_the_narrowest_type_that_holds_all_values() {
        assert_eq!(inferred(&["1", "-2", "+3", ""]), ColumnType::Int64);
        assert_eq!(inferred(&["1", "2.5", "1e-3", ".5", "-7."]), ColumnType::Float64);
        assert_eq!(inferred(&["1.5", "inf"]), ColumnType::Float64);
        assert_eq!(inferred(&["true", "False", "NA"]), ColumnType::Bool);
        assert_eq!(inferred(&["2007-11-11", "2008-02-29"]), ColumnType::Date);
        assert_eq!(inferred(&["2007-11-11T10:00:00", "2008-02-29 00:00:01.5", "2008-02-29"]), ColumnType::Datetime);
        assert_eq!(inferred(&["1", "x"]), ColumnType::Utf8);
        assert_eq!(inferred(&["1", "true"]), ColumnType::Utf8);
        assert_eq!(inferred(&["", "NA"]), ColumnType::Utf8);
    }

    #[test]
    fn codes_stay_text() {
        assert_eq!(inferred(&["00123", "12345"]), ColumnType::Utf8);
        assert_eq!(inferred(&["12345678901234567890"]), ColumnType::Utf8);
        assert_eq!(inferred(&["0", "0.5", "-0.25"]), ColumnType::Float64);
        assert_eq!(inferred(&["0", "10"]), ColumnType::Int64);
    }

    #[test]
    fn what_only_resembles_a_value_is_text() {
        for field in [
            "2023-02-30",
            "1.2.3",
            "-",
            "+",
            ".",
            "1,5",
            "e5",
            "0x10",
            "infinity",
            "nano",
            "12:30",
            "2023-1-1",
            "é023-01-01T00:00",
            "123456789éx:00",
        ] {
            assert_eq!(inferred(&[field]), ColumnType::Utf8, "{field}");
        }
    }

    #[test]
    fn decimal_commas_are_read_when_asked_for() {
        let commas = Values { null: vec![], decimal: ',' };
        assert_eq!(commas.float("1,5"), Some(1.5));
        assert_eq!(commas.float("-7"), Some(-7.0));
        assert_eq!(commas.float("1.5"), None);
    }

    #[test]
    fn declared_booleans_may_be_yes_and_no() {
        let mut builder = Builder::new(ColumnType::Bool);
        assert!(["yes", "N", "1", "false", "NA"].iter().all(|field| builder.push(field, &values())));
        assert!(!builder.push("maybe", &values()));
    }

    #[test]
    fn halves_of_a_file_agree_with_the_whole() {
        let fields = ["1", "2.5", "x", "true", "2020-01-01", "00", "-3"];
        for split in 0..fields.len() {
            let see = |fields: &[&str]| {
                let mut candidates = Candidates::all();
                fields.iter().for_each(|field| candidates.see(field, &values()));
                candidates
            };
            assert_eq!(see(&fields[..split]).merge(see(&fields[split..])).narrowest(), see(&fields).narrowest());
        }
    }
}
