//! Text to records of fields, each with the line it begins on.
//!
//! RFC 4180 with what files in the wild need: any delimiter, runs of blanks as one, comment lines, blanks around fields.
//! Written here and not taken from a library because the line of every record must be exact, and because a quote that is
//! never closed must be an error: common readers take the rest of the file for one field and say nothing.

use std::borrow::Cow;

/// What stands between fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Separator {
    /// One character.
    Byte(u8),
    /// Any run of spaces and tabs; those at a line's ends mean nothing, and there are no quotes.
    Whitespace,
}

/// How a file is written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dialect {
    pub(crate) separator: Separator,
    pub(crate) quote: Option<u8>,
    pub(crate) comment: Option<u8>,
    /// Blanks around fields mean nothing.
    pub(crate) trim: bool,
}

/// A record that cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadRecord {
    /// The line, from 1.
    pub(crate) line: usize,
    pub(crate) message: String,
    pub(crate) help: &'static str,
}

/// The records of a text, in order. Lines end with LF, CRLF or CR; empty lines are passed over.
#[derive(Clone)]
pub(crate) struct Records<'a> {
    text: &'a str,
    at: usize,
    line: usize,
    dialect: Dialect,
}

impl<'a> Records<'a> {
    /// From the start of `text`, which is line `line` of its file.
    pub(crate) fn new(text: &'a str, line: usize, dialect: Dialect) -> Self {
        Self { text, at: 0, line, dialect }
    }

    /// Where the next record begins: the byte, and its line.
    pub(crate) fn position(&self) -> (usize, usize) {
        (self.at, self.line)
    }

    /// Reads the next record into `fields`; gives its line, or none at the end.
    pub(crate) fn next(&mut self, fields: &mut Vec<Cow<'a, str>>) -> Result<Option<usize>, BadRecord> {
        fields.clear();
        self.skip_what_is_no_record();
        if self.at == self.text.len() {
            return Ok(None);
        }
        let line = self.line;
        match self.dialect.separator {
            Separator::Whitespace => self.blank_separated(fields),
            Separator::Byte(separator) => while self.field(separator, fields)? {},
        }
        self.end_line();
        Ok(Some(line))
    }

    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Moves past empty lines and comments.
    fn skip_what_is_no_record(&mut self) {
        while self.at < self.text.len() {
            let start = self.at;
            self.skip_blanks();
            let comment = self.dialect.comment.is_some() && self.byte() == self.dialect.comment;
            if comment {
                self.at = self.end_of_line();
            }
            if !comment && !matches!(self.byte(), None | Some(b'\n' | b'\r')) {
                self.at = start;
                return;
            }
            self.end_line();
        }
    }

    fn is_blank(&self, byte: u8) -> bool {
        (byte == b' ' || byte == b'\t') && self.dialect.separator != Separator::Byte(byte)
    }

    fn skip_blanks(&mut self) {
        while self.byte().is_some_and(|byte| self.is_blank(byte)) {
            self.at += 1;
        }
    }

    fn end_of_line(&self) -> usize {
        let rest = &self.text.as_bytes()[self.at..];
        rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')).map_or(self.text.len(), |end| self.at + end)
    }

    /// Moves past one line end, if it is here.
    fn end_line(&mut self) {
        match self.byte() {
            Some(b'\n') => self.at += 1,
            Some(b'\r') if self.text.as_bytes().get(self.at + 1) == Some(&b'\n') => self.at += 2,
            Some(b'\r') => self.at += 1,
            _ => return,
        }
        self.line += 1;
    }

    fn blank_separated(&mut self, fields: &mut Vec<Cow<'a, str>>) {
        let end = self.end_of_line();
        fields.extend(self.text[self.at..end].split([' ', '\t']).filter(|field| !field.is_empty()).map(Cow::Borrowed));
        self.at = end;
    }

    /// Reads one field and what ends it; true when another follows.
    fn field(&mut self, separator: u8, fields: &mut Vec<Cow<'a, str>>) -> Result<bool, BadRecord> {
        let start = self.at;
        if self.dialect.trim {
            self.skip_blanks();
        }
        let quoted = self.dialect.quote.filter(|quote| self.byte() == Some(*quote));
        let field = match quoted {
            Some(quote) => self.quoted(quote)?,
            None => {
                let rest = &self.text.as_bytes()[self.at..];
                let length = rest.iter().position(|byte| *byte == separator || matches!(byte, b'\n' | b'\r'));
                self.at += length.unwrap_or(rest.len());
                let field = &self.text[start..self.at];
                Cow::Borrowed(if self.dialect.trim { field.trim_matches([' ', '\t']) } else { field })
            }
        };
        fields.push(field);
        if quoted.is_some() && self.dialect.trim {
            self.skip_blanks();
        }
        match self.byte() {
            Some(byte) if byte == separator => {
                self.at += 1;
                Ok(true)
            }
            None | Some(b'\n' | b'\r') => Ok(false),
            Some(_) => {
                let next = self.text[self.at..].chars().next().unwrap_or_default();
                Err(BadRecord {
                    line: self.line,
                    message: format!("`{next}` follows a closing quote, where the field must end"),
                    help: "a quote within a quoted field is written twice: \"say \"\"hello\"\"\"; if quotes mean nothing in this file, say quote = \"\"",
                })
            }
        }
    }

    /// Reads a quoted field, from its opening quote to after its closing one.
    fn quoted(&mut self, quote: u8) -> Result<Cow<'a, str>, BadRecord> {
        let opened = self.line;
        let bytes = self.text.as_bytes();
        self.at += 1;
        let mut piece = self.at;
        let mut joined = String::new();
        loop {
            match self.byte() {
                None => {
                    return Err(BadRecord {
                        line: opened,
                        message: "a quote is opened here and never closed".to_owned(),
                        help: "close it; if quotes mean nothing in this file, say quote = \"\"",
                    });
                }
                Some(byte) if byte == quote => {
                    let field = &self.text[piece..self.at];
                    self.at += 1;
                    if self.byte() != Some(quote) {
                        return Ok(if joined.is_empty() { Cow::Borrowed(field) } else { Cow::Owned(joined + field) });
                    }
                    joined.push_str(field);
                    joined.push(char::from(quote));
                    self.at += 1;
                    piece = self.at;
                }
                Some(b'\n') => {
                    self.line += 1;
                    self.at += 1;
                }
                Some(b'\r') => {
                    self.line += usize::from(bytes.get(self.at + 1) != Some(&b'\n'));
                    self.at += 1;
                }
                Some(_) => self.at += 1,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use arrow::array::{Array, AsArray};
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    const COMMAS: Dialect = Dialect { separator: Separator::Byte(b','), quote: Some(b'"'), comment: Some(b'#'), trim: true };
    const BLANKS: Dialect = Dialect { separator: Separator::Whitespace, quote: None, comment: None, trim: true };

    fn all(text: &str, dialect: Dialect) -> Result<Vec<(usize, Vec<String>)>, BadRecord> {
        let (mut records, mut fields, mut all) = (Records::new(text, 1, dialect), Vec::new(), Vec::new());
        while let Some(line) = records.next(&mut fields)? {
            all.push((line, fields.iter().map(|field| field.to_string()).collect()));
        }
        Ok(all)
    }

    fn line(number: usize, fields: &[&str]) -> (usize, Vec<String>) {
        (number, fields.iter().map(|field| (*field).to_owned()).collect())
    }

    #[test]
    fn fields_and_lines_are_told_apart_whatever_ends_a_line() {
        let expected = vec![line(1, &["a", "b"]), line(2, &["1", ""]), line(3, &["", "2"])];
        for end in ["\n", "\r\n", "\r"] {
            assert_eq!(all(&["a,b", "1,", ",2"].join(end), COMMAS).unwrap(), expected);
            assert_eq!(all(&(["a,b", "1,", ",2"].join(end) + end), COMMAS).unwrap(), expected);
        }
    }

    #[test]
    fn quoted_fields_hold_delimiters_quotes_and_line_ends() {
        let text = "\"a,b\",\"say \"\"hi\"\"\"\n\"two\nlines\" , 5\" tall\nlast,\"\"";
        let expected = vec![line(1, &["a,b", "say \"hi\""]), line(2, &["two\nlines", "5\" tall"]), line(4, &["last", ""])];
        assert_eq!(all(text, COMMAS).unwrap(), expected);
    }

    #[test]
    fn empty_lines_and_comments_are_passed_over_and_counted() {
        assert_eq!(all("\n# note, with commas\na,b\n  \n\n1,2\n#", COMMAS).unwrap(), vec![line(3, &["a", "b"]), line(6, &["1", "2"])]);
        assert_eq!(all("", COMMAS).unwrap(), vec![]);
    }

    #[test]
    fn blanks_are_kept_when_they_mean_something() {
        let exact = Dialect { trim: false, ..COMMAS };
        assert_eq!(all(" a , b\n", exact).unwrap(), vec![line(1, &[" a ", " b"])]);
        let tabs = Dialect { separator: Separator::Byte(b'\t'), ..COMMAS };
        assert_eq!(all("a\t\t b \n", tabs).unwrap(), vec![line(1, &["a", "", "b"])]);
        assert_eq!(all("\t\n", tabs).unwrap(), vec![line(1, &["", ""])]);
    }

    #[test]
    fn runs_of_blanks_separate_and_trailing_ones_mean_nothing() {
        assert_eq!(all("1 2  3\t4  \n 5 6 7 8\n\n", BLANKS).unwrap(), vec![line(1, &["1", "2", "3", "4"]), line(2, &["5", "6", "7", "8"])]);
    }

    #[test]
    fn a_quote_that_is_never_closed_is_named_by_the_line_it_opens_on() {
        let error = all("a,b\n1,2\n3,\"4\n5,6\n", COMMAS).unwrap_err();
        assert_eq!((error.line, error.message.contains("never closed")), (3, true));
    }

    #[test]
    fn text_after_a_closing_quote_is_named_with_its_line() {
        let error = all("a,b\n\"x\ny\"z,2\n", COMMAS).unwrap_err();
        assert_eq!(error.line, 3);
        assert!(error.message.contains("`z` follows a closing quote"), "{}", error.message);
    }

    #[test]
    fn random_tables_read_as_arrows_reader_reads_them() {
        let mut random = 7u64;
        let mut next = |below: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as usize % below
        };
        for _ in 0..200 {
            let (rows, columns) = (1 + next(20), 1 + next(5));
            let mut text = String::new();
            for _ in 0..rows {
                for column in 0..columns {
                    let value: String = (0..1 + next(6)).map(|_| ['a', 'ü', '"', ',', '\n', '1', '.'][next(7)]).collect();
                    text.push_str(&format!("\"{}\"", value.replace('"', "\"\"")));
                    text.push(if column + 1 < columns { ',' } else { '\n' });
                }
            }
            let schema = Schema::new((0..columns).map(|c| Field::new(c.to_string(), DataType::Utf8, true)).collect::<Vec<_>>());
            let reader = arrow::csv::ReaderBuilder::new(Arc::new(schema)).with_batch_size(rows).build(text.as_bytes()).unwrap();
            let batch = reader.map(Result::unwrap).next().unwrap();
            let ours = all(&text, Dialect { trim: false, comment: None, ..COMMAS }).unwrap();
            assert_eq!(ours.len(), batch.num_rows());
            for (row, (_, fields)) in ours.iter().enumerate() {
                let theirs: Vec<&str> =
                    batch.columns().iter().map(|column| column.as_string::<i32>()).map(|column| column.value(row)).collect();
                assert_eq!(fields, &theirs, "{text}");
                assert!(batch.columns().iter().all(|column| column.len() == rows));
            }
        }
    }
}
