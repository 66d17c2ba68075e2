//! Columns of a table: which are kept, which are converted, which are refused.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray};
use arrow::compute::{CastOptions, cast, cast_with_options};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::display::array_value_to_string;
use artifact::config::suggest;
use artifact::{Doing, RunContext, StageError};
use dataset::{ROW_GROUP_ROWS, Split};

use super::Parquet;
use super::file::ParquetFile;

/// The key under which Arrow states an extension type in a field's metadata.
const EXTENSION: &str = "ARROW:extension:name";

/// A column that is read: its place in the file and the type it gets.
struct Column {
    name: String,
    index: usize,
    kind: DataType,
}

/// Reads all files as one table.
pub(super) fn read(config: &Parquet, files: &[ParquetFile], context: &RunContext) -> Result<(SchemaRef, Vec<RecordBatch>), StageError> {
    let plans = files.iter().map(|file| plan(config, file)).collect::<Result<Vec<_>, _>>()?;
    same_columns(files, &plans)?;
    let schema = schema(config, &plans[0]);
    let progress = context.progress("reading", None, "rows");
    let mut all = Vec::new();
    for (file, columns) in files.iter().zip(&plans) {
        let split = config.split_of_file(&file.name);
        let places: Vec<usize> = columns.iter().map(|column| column.index).collect();
        let mut batches = file.batches(&places, ROW_GROUP_ROWS)?;
        while let Some(batch) = batches.next()? {
            context.check_stop()?;
            let first_row = batches.rows - batch.num_rows();
            let mut arrays = columns.iter().map(|column| convert(file, column, &batch, first_row)).collect::<Result<Vec<_>, _>>()?;
            if !config.splits.is_empty() {
                arrays.push(Arc::new(StringArray::from(vec![split.map(Split::name); batch.num_rows()])));
            }
            progress.add(batch.num_rows() as u64);
            all.push(RecordBatch::try_new(Arc::clone(&schema), arrays).doing(|| format!("putting the columns of {} together", file.name))?);
        }
    }
    if all.iter().all(|batch| batch.num_rows() == 0) {
        return Err(StageError::new("this table has no rows").at(&files[0].name));
    }
    Ok((schema, all))
}

/// The columns to read; all that cannot be handled are named at once.
fn plan(config: &Parquet, file: &ParquetFile) -> Result<Vec<Column>, StageError> {
    for (key, column) in [("label", &config.label), ("split", &config.split)] {
        if let Some(column) = column {
            file.index_of(key, column)?;
        }
    }
    let names: Vec<String> = match config.columns.is_empty() {
        true => file.schema().fields().iter().map(|field| field.name().clone()).collect(),
        false => config.columns.clone(),
    };
    if let Some(unknown) = config.types.keys().find(|name| !names.contains(name)) {
        return Err(StageError::new(format!("`types` names the column `{unknown}`, which is not read"))
            .at(&file.name)
            .help(suggest(unknown, names.iter().map(String::as_str))));
    }
    if !config.splits.is_empty() && names.iter().any(|name| name == "split") {
        return Err(StageError::new("`splits` makes a column `split`, and the table has one").at(&file.name).help("use split = \"split\""));
    }
    let (mut columns, mut refused) = (Vec::new(), Vec::new());
    for (position, name) in names.iter().enumerate() {
        if names[..position].contains(name) {
            return Err(StageError::new(format!("the column `{name}` is there twice"))
                .at(&file.name)
                .help("give every column a name of its own"));
        }
        let index = file.index_of("columns", name)?;
        let field = file.schema().field(index);
        let kind = match config.types.get(name) {
            Some(declared) => Some(declared.arrow()),
            None => kept_as(field),
        };
        match kind {
            Some(kind) => columns.push(Column { name: name.clone(), index, kind }),
            None => refused.push(format!("`{name}` ({})", described(field))),
        }
    }
    match refused.is_empty() {
        true => Ok(columns),
        false => Err(refusal(&refused).at(&file.name)),
    }
}

/// The type that a column is stored with, or none when later stages cannot handle it. What is converted loses nothing.
fn kept_as(field: &Field) -> Option<DataType> {
    if field.metadata().get(EXTENSION).is_some() {
        return None;
    }
    fn kept(kind: &DataType) -> Option<DataType> {
        Some(match kind {
            DataType::Boolean | DataType::Date32 | DataType::Timestamp(..) | DataType::Float32 | DataType::Float64 => kind.clone(),
            DataType::Float16 => DataType::Float32,
            DataType::Date64 => DataType::Date32,
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => DataType::Utf8,
            DataType::Dictionary(_, values) => return kept(values),
            kind if kind.is_integer() => kind.clone(),
            _ => return None,
        })
    }
    kept(field.data_type())
}

fn described(field: &Field) -> String {
    match field.metadata().get(EXTENSION) {
        Some(name) => format!("extension type {name}"),
        None => field.data_type().to_string(),
    }
}

fn refusal(columns: &[String]) -> StageError {
    let sentence = match columns {
        [one] => format!("later stages cannot handle the column {one}"),
        more => format!("later stages cannot handle {} columns: {}", more.len(), more.join(", ")),
    };
    StageError::new(sentence).help(
        "name the columns to keep with `columns`, or a type to convert to with `types`: types = { \"price\" = \"float64\" }; lists and \
         structs must be flattened where the file is written; a binary column of images is named with `image`",
    )
}

fn schema(config: &Parquet, columns: &[Column]) -> SchemaRef {
    let mut fields: Vec<Field> = columns.iter().map(|column| Field::new(&column.name, column.kind.clone(), true)).collect();
    if !config.splits.is_empty() {
        fields.push(Field::new("split", DataType::Utf8, true));
    }
    Arc::new(Schema::new(fields))
}

fn same_columns(files: &[ParquetFile], plans: &[Vec<Column>]) -> Result<(), StageError> {
    let listed = |columns: &[Column]| columns.iter().map(|column| format!("{} {}", column.name, column.kind)).collect::<Vec<_>>();
    let first = listed(&plans[0]);
    for (file, plan) in files.iter().zip(plans).skip(1) {
        let here = listed(plan);
        if here == first {
            continue;
        }
        let what = match here.iter().zip(&first).position(|(here, there)| here != there) {
            Some(index) => format!("column {} is `{}` here and `{}` in {}", index + 1, here[index], first[index], files[0].name),
            None => format!("there are {} columns here and {} in {}", here.len(), first.len(), files[0].name),
        };
        return Err(StageError::new(format!("the files have different columns: {what}"))
            .at(&file.name)
            .help("files that become one table have the same columns and types; choose with `columns`, convert with `types`, or read fewer with `files`"));
    }
    Ok(())
}

/// A column of a batch in its type, or the first value that has no such form.
fn convert(file: &ParquetFile, column: &Column, batch: &RecordBatch, first_row: usize) -> Result<ArrayRef, StageError> {
    let array = batch
        .column_by_name(&column.name)
        .ok_or_else(|| StageError::new(format!("the column `{}` is missing", column.name)).at(&file.name))?;
    if array.data_type() == &column.kind {
        return Ok(Arc::clone(array));
    }
    let strict = CastOptions { safe: false, ..CastOptions::default() };
    cast_with_options(array, &column.kind, &strict).map_err(|error| {
        let converting =
            StageError::new(format!("the column `{}` cannot be converted from {} to {}", column.name, array.data_type(), column.kind));
        // The lenient cast makes null of what it cannot convert: there is the row.
        let lenient = cast(array, &column.kind).ok();
        let row = lenient.and_then(|lenient| (0..array.len()).find(|row| array.is_valid(*row) && lenient.is_null(*row)));
        match row {
            Some(row) => {
                let value = array_value_to_string(array, row).unwrap_or_default();
                converting.at(format!("{}, row {}: `{value}`", file.name, first_row + row))
            }
            None => converting.at(&file.name).because(&error),
        }
        .help("choose another type, or leave the column out with `columns`")
    })
}
