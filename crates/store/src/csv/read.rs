//! Files to one table: names, then types from all rows, then values; rows in parallel, in fixed pieces.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use artifact::config::suggest;
use artifact::{Doing, RunContext, StageError, collect_in_order};
use bytes::Bytes;
use dataset::Split;
use rayon::prelude::*;

use super::Csv;
use super::columns::{Builder, Candidates, ColumnType, Values};
use super::records::{BadRecord, Dialect, Records};
use crate::content::{Content, describe, looks_like};
use crate::select::Chosen;

/// Records in a piece. Fixed, so that batches are the same at any thread count.
const PIECE_RECORDS: usize = 8192;

pub(super) struct Table {
    pub(super) schema: SchemaRef,
    pub(super) batches: Vec<RecordBatch>,
}

/// A file whose text is UTF-8, with its columns' names.
struct TextFile<'a> {
    name: &'a str,
    text: &'a str,
    dialect: Dialect,
    split: Option<Split>,
    columns: Vec<String>,
    pieces: Vec<Piece>,
}

/// A run of whole records: bytes of the text, and the line of the first.
struct Piece {
    start: usize,
    end: usize,
    line: usize,
}

/// Reads all files as one table.
pub(super) fn read(config: &Csv, chosen: &[Chosen], context: &RunContext) -> Result<Table, StageError> {
    let contents: Vec<Bytes> =
        collect_in_order(chosen.par_iter().map(|file| Content::open(file.name, file.path)?.whole(config.max_bytes)))?;
    let mut files = Vec::new();
    for (file, content) in chosen.iter().zip(&contents) {
        context.check_stop()?;
        files.push(open(config, file, text_of(file.name, content)?, context)?);
    }
    let columns = same_columns(&files)?.to_vec();
    check_names(config, &columns)?;
    let types = types(config, &files, &columns, context)?;
    let schema = schema(config, &columns, &types)?;
    let values = config.values();
    let progress = context.progress("reading", None, "rows");
    let work: Vec<(&TextFile, &Piece)> = files.iter().flat_map(|file| file.pieces.iter().map(move |piece| (file, piece))).collect();
    let batches = collect_in_order(work.par_iter().map(|(file, piece)| {
        context.check_stop()?;
        let batch = build(file, piece, &types, &values, &schema)?;
        progress.add(batch.num_rows() as u64);
        Ok::<_, StageError>(batch)
    }))?;
    Ok(Table { schema, batches })
}

/// The file's text without its byte-order mark; refuses what is no UTF-8, by line.
fn text_of<'a>(name: &str, content: &'a Bytes) -> Result<&'a str, StageError> {
    if content.is_empty() {
        return Err(StageError::new("this table is empty").at(name));
    }
    if let Some(kind) = looks_like(content).filter(|kind| is_no_table(content, kind)) {
        return Err(StageError::new(format!("this is no text table; {}", describe(content))).at(name).help(
            match kind.contains("UTF-16") {
                true => "convert it to UTF-8: iconv -f utf-16 -t utf-8 FILE",
                false => "give the table itself; packed files must be unpacked first (gzip is read as it is)",
            },
        ));
    }
    let text = std::str::from_utf8(content).map_err(|error| {
        let good = &content[..error.valid_up_to()];
        let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
        let column = 1 + good.iter().rev().take_while(|byte| **byte != b'\n').count();
        let byte = content[error.valid_up_to()];
        StageError::new(format!("byte {byte:#04x} at position {column} of line {line} is no UTF-8"))
            .at(format!("{name}, line {line}"))
            .help("convert the file to UTF-8: iconv -f windows-1252 -t utf-8 FILE (or whatever it is written in)")
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// True when bytes that look like another kind of file cannot be a table: they are no text, or a page or pointer that a
/// server gave in its place.
fn is_no_table(content: &[u8], kind: &str) -> bool {
    let head = &content[..content.len().min(8192)];
    head.contains(&0) || std::str::from_utf8(content).is_err() || ["HTML", "XML", "Git LFS"].iter().any(|word| kind.contains(word))
}

/// Reads names, counts fields and finds where the pieces begin.
fn open<'a>(config: &Csv, file: &Chosen<'a>, text: &'a str, context: &RunContext) -> Result<TextFile<'a>, StageError> {
    let dialect = config.dialect(file.name);
    let bad = |bad: BadRecord| StageError::new(bad.message).at(format!("{}, line {}", file.name, bad.line)).help(bad.help);
    let mut records = Records::new(text, 1, dialect);
    let mut fields: Vec<Cow<str>> = Vec::new();
    let mut first = records.clone();
    let Some(line) = first.next(&mut fields).map_err(bad)? else {
        return Err(StageError::new("this table is empty").at(file.name));
    };
    let width = fields.len();
    let columns = match (config.columns.is_empty(), config.header) {
        (false, _) => stated_names(config, file.name, line, width)?,
        (true, true) => header_names(&fields, file.name, context),
        (true, false) => (1..=width).map(|number| format!("column_{number}")).collect(),
    };
    if config.header {
        records = first;
    }
    if width == 1 && config.delimiter.is_none() {
        check_delimiter(&fields[0], file.name)?;
    }
    let mut pieces: Vec<Piece> = Vec::new();
    let mut count = 0;
    loop {
        let (at, piece_line) = records.position();
        let Some(line) = records.next(&mut fields).map_err(bad)? else { break };
        if fields.len() != width {
            return Err(ragged(file.name, line, fields.len(), &columns));
        }
        if count % PIECE_RECORDS == 0 {
            context.check_stop()?;
            pieces.push(Piece { start: at, end: at, line: piece_line });
        }
        if let Some(piece) = pieces.last_mut() {
            piece.end = records.position().0;
        }
        count += 1;
    }
    if count == 0 {
        return Err(StageError::new("this table has a header and no rows").at(file.name));
    }
    let split = config.splits.iter().find(|(name, _)| file.is(name)).map(|(_, split)| *split);
    Ok(TextFile { name: file.name, text, dialect, split, columns, pieces })
}

fn ragged(file: &str, line: usize, found: usize, columns: &[String]) -> StageError {
    let expected = columns.len();
    let help = match found > expected {
        true => "a value that holds the delimiter must be in quotes",
        false => "every row needs a field for every column; a missing value is an empty field",
    };
    let names = columns.iter().take(6).cloned().collect::<Vec<_>>().join(", ");
    let names = if expected > 6 { format!("{names}, …") } else { names };
    StageError::new(format!("line {line} has {found} fields, and the table has {expected} columns ({names})"))
        .at(format!("{file}, line {line}"))
        .help(help)
}

fn stated_names(config: &Csv, file: &str, line: usize, width: usize) -> Result<Vec<String>, StageError> {
    if config.columns.len() != width {
        let stated = config.columns.len();
        return Err(StageError::new(format!("`columns` names {stated} columns, and line {line} has {width} fields"))
            .at(format!("{file}, line {line}"))
            .help("name every column, in order"));
    }
    Ok(config.columns.clone())
}

/// The header's names; empty and repeated ones get names of their own.
fn header_names(fields: &[Cow<str>], file: &str, context: &RunContext) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for (index, field) in fields.iter().enumerate() {
        let base = match field.trim() {
            "" => format!("column_{}", index + 1),
            name => name.to_owned(),
        };
        let taken =
            |name: &String| names.contains(name) || fields.iter().enumerate().any(|(other, field)| other > index && field.trim() == name);
        let name = match names.contains(&base) || (field.trim().is_empty() && taken(&base)) {
            true => (2..).map(|number| format!("{base}_{number}")).find(|name| !taken(name)).unwrap_or_default(),
            false => base,
        };
        if name != field.trim() {
            let found =
                if field.trim().is_empty() { "has no name".to_owned() } else { format!("is called `{}` as another is", field.trim()) };
            context.warn(format!("column {} of {file} {found}; it becomes `{name}`", index + 1));
        }
        names.push(name);
    }
    names
}

/// One column only, and another delimiter in the first line: surely a mistake.
fn check_delimiter(first: &str, file: &str) -> Result<(), StageError> {
    let Some(likely) = [';', '\t', '|'].into_iter().find(|likely| first.contains(*likely)) else { return Ok(()) };
    let name = if likely == '\t' { "tab".to_owned() } else { likely.to_string() };
    Err(StageError::new(format!("the first line has one field only, and holds `{}`", likely.escape_default()))
        .at(file)
        .help(format!("say what stands between fields: delimiter = \"{name}\"")))
}

/// The columns that all files have.
fn same_columns<'a>(files: &'a [TextFile]) -> Result<&'a [String], StageError> {
    let first = &files[0];
    for file in &files[1..] {
        if file.columns == first.columns {
            continue;
        }
        let what = match file.columns.iter().zip(&first.columns).position(|(here, there)| here != there) {
            Some(index) => {
                format!("column {} is `{}` here and `{}` in {}", index + 1, file.columns[index], first.columns[index], first.name)
            }
            None => format!("there are {} columns here and {} in {}", file.columns.len(), first.columns.len(), first.name),
        };
        return Err(StageError::new(format!("the files have different columns: {what}"))
            .at(file.name)
            .help("files that become one table have the same columns in the same order; name those that do with `files`"));
    }
    Ok(&first.columns)
}

fn check_names(config: &Csv, columns: &[String]) -> Result<(), StageError> {
    let unknown = |key: &str, name: &String| {
        StageError::new(format!("`{key}` names the column `{name}`, and there is none"))
            .help(suggest(name, columns.iter().map(String::as_str)))
    };
    if let Some(name) = config.types.keys().find(|name| !columns.contains(name)) {
        return Err(unknown("types", name));
    }
    if let Some(name) = config.label.as_ref().filter(|name| !columns.contains(name)) {
        return Err(unknown("label", name));
    }
    if !config.splits.is_empty() && columns.iter().any(|name| name == "split") {
        return Err(StageError::new("`splits` makes a column `split`, and the table has one")
            .help("leave `splits` out, or name the columns with `columns`"));
    }
    Ok(())
}

/// Declared types, and for the others the narrowest that holds every value of every file.
fn types(config: &Csv, files: &[TextFile], columns: &[String], context: &RunContext) -> Result<Vec<ColumnType>, StageError> {
    let values = config.values();
    let declared: Vec<Option<ColumnType>> = columns.iter().map(|name| config.types.get(name).copied()).collect();
    let pieces: Vec<(&TextFile, &Piece)> = files.iter().flat_map(|file| file.pieces.iter().map(move |piece| (file, piece))).collect();
    let seen = pieces
        .par_iter()
        .map(|(file, piece)| {
            context.check_stop()?;
            let mut candidates = vec![Candidates::all(); columns.len()];
            each_record(file, piece, |_, fields| {
                for ((field, candidates), declared) in fields.iter().zip(&mut candidates).zip(&declared) {
                    if declared.is_none() && !values.is_null(field) {
                        candidates.see(field, &values);
                    }
                }
                Ok(())
            })?;
            Ok(candidates)
        })
        .try_reduce(
            || vec![Candidates::all(); columns.len()],
            |left, right| Ok::<_, StageError>(left.into_iter().zip(right).map(|(left, right)| left.merge(right)).collect()),
        )?;
    for ((name, seen), declared) in columns.iter().zip(&seen).zip(&declared) {
        if declared.is_none() && !seen.any {
            context.warn(format!("the column `{name}` has no value at all; it is stored as text"));
        }
    }
    Ok(seen.into_iter().zip(declared).map(|(seen, declared)| declared.unwrap_or_else(|| seen.narrowest())).collect())
}

fn schema(config: &Csv, columns: &[String], types: &[ColumnType]) -> Result<SchemaRef, StageError> {
    let mut fields: Vec<Field> = columns.iter().zip(types).map(|(name, kind)| Field::new(name, kind.arrow(), true)).collect();
    if !config.splits.is_empty() {
        fields.push(Field::new("split", DataType::Utf8, true));
    }
    Ok(Arc::new(Schema::new(fields)))
}

/// A piece's rows as a batch, or the first value that is not of its column's type.
fn build(file: &TextFile, piece: &Piece, types: &[ColumnType], values: &Values, schema: &SchemaRef) -> Result<RecordBatch, StageError> {
    let mut builders: Vec<Builder> = types.iter().map(|kind| Builder::new(*kind)).collect();
    let mut rows = 0;
    each_record(file, piece, |line, fields| {
        rows += 1;
        for (index, (field, builder)) in fields.iter().zip(&mut builders).enumerate() {
            if !builder.push(field, values) {
                return Err(misfit(file, line, index, field, types[index]));
            }
        }
        Ok(())
    })?;
    let mut columns: Vec<ArrayRef> = builders.into_iter().map(Builder::finish).collect();
    if schema.fields().len() > columns.len() {
        columns.push(Arc::new(StringArray::from(vec![file.split.map(Split::name); rows])));
    }
    RecordBatch::try_new(Arc::clone(schema), columns).doing(|| format!("putting the columns of {} together", file.name))
}

fn misfit(file: &TextFile, line: usize, index: usize, field: &str, kind: ColumnType) -> StageError {
    let name = &file.columns[index];
    let shown: String = field.chars().take(60).collect();
    StageError::new(format!("`{shown}` in column `{name}` on line {line} is not {}", kind.described()))
        .at(format!("{}, line {line}", file.name))
        .help(format!(
            "correct the value; or, if it stands for a missing one, add it to `null`; or declare another type: types = {{ \"{name}\" = \"{}\" }}",
            if kind == ColumnType::Int64 { ColumnType::Float64.name() } else { ColumnType::Utf8.name() }
        ))
}

/// Every record of a piece, with its line.
fn each_record<'a>(
    file: &TextFile<'a>,
    piece: &Piece,
    mut work: impl FnMut(usize, &[Cow<'a, str>]) -> Result<(), StageError>,
) -> Result<(), StageError> {
    let mut records = Records::new(&file.text[piece.start..piece.end], piece.line, file.dialect);
    let mut fields = Vec::new();
    // The whole text was read once before: records are whole.
    while let Some(line) = records.next(&mut fields).map_err(|bad| StageError::new(bad.message).at(file.name))? {
        work(line, &fields)?;
    }
    Ok(())
}
