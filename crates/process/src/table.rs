//! `process.table`: from a raw table to features, and the f that replays it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use artifact::{Doing, Outcome, RunContext, StageError, collect_in_order, config};
use dataset::{DATA_FILE, Profile, Split, table};
use polars::prelude::{BooleanChunked, DataFrame, IntoLazy, NewChunkedArray};
use rayon::prelude::*;
use transform::{ColumnKind, Derived, Feature, Fitted, RawColumn, Source, TableTransform, raw, source, sql};

use crate::cleaning::{Cleaning, ColumnChange};
use crate::copies::{self, Row};
use crate::fit;
use crate::labels::{self, Unlabelled, some_of};
use crate::split::{self, Member};
use crate::table_config::{Duplicates, OneHot, Strategy, Table};

/// Names that the processed table uses itself.
const OWN_COLUMNS: [&str; 3] = ["id", "label", "split"];

/// Runs the stage.
pub(crate) fn run(config: &Table, context: &RunContext) -> Result<Outcome, StageError> {
    let path = context.input("input")?.path.join(DATA_FILE);
    let (schema, batches) = table::read_table(&path)?;
    let work = Work::new(config, &schema, batches).map_err(|error| if error.place.is_none() { error.at(path.display()) } else { error })?;
    work.run(context)
}

/// A raw table and its rows' parts.
struct Work<'a> {
    config: &'a Table,
    schema: &'a SchemaRef,
    batches: Vec<RecordBatch>,
    ids: Vec<String>,
    labels: Vec<Option<String>>,
    given: Vec<Option<Split>>,
}

impl<'a> Work<'a> {
    fn new(config: &'a Table, schema: &'a SchemaRef, batches: Vec<RecordBatch>) -> Result<Self, StageError> {
        check_names(config, schema)?;
        let mut work = Self { config, schema, batches, ids: Vec::new(), labels: Vec::new(), given: Vec::new() };
        let rows: usize = work.batches.iter().map(RecordBatch::num_rows).sum();
        if rows == 0 {
            return Err(StageError::new("the table has no rows"));
        }
        work.ids = match &config.id {
            Some(name) => work.read_ids(name)?,
            None => (0..rows).map(|row| row.to_string()).collect(),
        };
        work.labels = work.words(&config.label)?;
        work.given = match &config.split.column {
            Some(name) => work
                .words(name)?
                .iter()
                .enumerate()
                .map(|(row, word)| Table::given_split(word.as_deref(), row))
                .collect::<Result<_, _>>()?,
            None => vec![None; rows],
        };
        Ok(work)
    }

    fn chunks(&self, name: &str) -> Vec<ArrayRef> {
        self.batches.iter().filter_map(|batch| batch.column_by_name(name).cloned()).collect()
    }

    fn words(&self, name: &str) -> Result<Vec<Option<String>>, StageError> {
        raw::texts(name, &self.chunks(name), &self.config.missing_values)
    }

    fn read_ids(&self, name: &str) -> Result<Vec<String>, StageError> {
        let ids = raw::texts(name, &self.chunks(name), &[])?;
        let ids: Vec<String> = ids
            .into_iter()
            .enumerate()
            .map(|(row, id)| id.ok_or_else(|| StageError::new(format!("the id column `{name}` has no value")).at(format!("row {row}"))))
            .collect::<Result<_, _>>()?;
        Ok(ids)
    }

    fn run(&self, context: &RunContext) -> Result<Outcome, StageError> {
        let rows = self.ids.len();
        let mut cleaning = Cleaning { rows_in: rows as u64, ..Cleaning::default() };
        let digests = self.digests()?;
        let mut keep = vec![true; rows];
        self.judge_unlabelled(&mut keep, &mut cleaning)?;
        self.drop_copies(&digests, &mut keep, &mut cleaning)?;
        self.refuse_repeated_ids(&keep)?;
        self.drop_filtered(&mut keep, &mut cleaning)?;
        context.check_stop()?;
        let source = self.source()?;
        let (frame, origins) = source.frame_and_origins(&self.batches)?;
        let columns = self.feature_columns(&frame)?;
        self.drop_missing(&frame, &columns, &mut keep, &mut cleaning)?;
        let kept: Vec<usize> = (0..rows).filter(|row| keep[*row]).collect();
        if kept.is_empty() {
            return Err(StageError::new(format!("no row is left: {}", cleaning.summary())));
        }
        let splits = self.split(&kept, &digests);
        for problem in split::check(&splits)? {
            context.warn(problem);
        }
        let classes = labels::classes(kept.iter().zip(&splits).map(|(row, split)| (self.labels[*row].as_deref(), *split)))?;
        context.check_stop()?;
        let mask = BooleanChunked::from_slice("keep".into(), &keep);
        let frame = frame.filter(&mask).doing(|| "dropping rows".into())?;
        let train: Vec<usize> = (0..kept.len()).filter(|row| splits[*row] == Split::Train).collect();
        let (features, changes) = self.fit(&frame, &columns, &train)?;
        let transform = self.transform(source, &origins, classes, features);
        check_feature_names(&transform)?;
        cleaning.rows_out = kept.len() as u64;
        report_changes(&mut cleaning, changes);
        self.write(context, &transform, &frame, &kept, &splits)?;
        cleaning.write(context.output())?;
        let [train, validation, test] = split::counts(&splits);
        context.info(format!(
            "{}; {train} train, {validation} validation, {test} test; {} classes, {} features",
            cleaning.summary(),
            transform.classes.len(),
            transform.width()
        ));
        cleaning.notes.iter().for_each(|note| context.warn(note));
        let schema = serde_json::json!({
            "features": transform.feature_names(),
            "classes": transform.classes,
            "splits": { "train": train, "validation": validation, "test": test },
            "dropped": cleaning.dropped,
        });
        Fitted::Table(transform).write(context.output())?;
        Ok(Outcome { rows: Some(kept.len() as u64), schema, ..Outcome::default() })
    }

    /// BLAKE3 of each row's words, column by column, nulls told from texts.
    fn digests(&self) -> Result<Vec<[u8; 32]>, StageError> {
        let blocks: Vec<Vec<[u8; 32]>> = collect_in_order(self.batches.par_iter().map(row_digests))?;
        Ok(blocks.into_iter().flatten().collect())
    }

    fn judge_unlabelled(&self, keep: &mut [bool], cleaning: &mut Cleaning) -> Result<(), StageError> {
        let unlabelled: Vec<usize> = (0..keep.len()).filter(|row| self.labels[*row].is_none()).collect();
        match self.config.unlabelled {
            Unlabelled::Fail => {
                let ids: Vec<&str> = unlabelled.iter().map(|row| self.ids[*row].as_str()).collect();
                labels::refuse_unlabelled(&ids, keep.len())?;
            }
            Unlabelled::Drop => unlabelled.into_iter().for_each(|row| {
                keep[row] = false;
                cleaning.drop_row(&self.ids[row], "unlabelled", None);
            }),
            Unlabelled::Keep if unlabelled.is_empty() => {}
            Unlabelled::Keep => cleaning.notes.push(format!("{} rows without a label are kept in the test split", unlabelled.len())),
        }
        Ok(())
    }

    fn drop_copies(&self, digests: &[[u8; 32]], keep: &mut [bool], cleaning: &mut Cleaning) -> Result<(), StageError> {
        if self.config.duplicates == Duplicates::Keep {
            return Ok(());
        }
        let rows: Vec<Row> = (0..keep.len())
            .map(|row| Row {
                id: &self.ids[row],
                label: self.labels[row].as_deref(),
                given: self.given[row],
                digest: Some(digests[row]).filter(|_| keep[row]),
            })
            .collect();
        let groups = copies::groups(&rows)?;
        copies::carry_out(&copies::judge(&groups), &rows, keep, cleaning);
        cleaning.notes.extend(copies::notes(&groups, "rows"));
        Ok(())
    }

    /// Predictions are joined to the data by id: of the rows that stay, no two may share one.
    fn refuse_repeated_ids(&self, keep: &[bool]) -> Result<(), StageError> {
        let Some(name) = &self.config.id else { return Ok(()) };
        let mut seen = std::collections::HashSet::new();
        let repeated: Vec<&str> =
            self.ids.iter().zip(keep).filter(|(id, keep)| **keep && !seen.insert(id.as_str())).map(|(id, _)| id.as_str()).collect();
        match repeated.is_empty() {
            true => Ok(()),
            false => Err(StageError::new(format!("{} values of the id column `{name}` occur more than once", repeated.len()))
                .at(format!("id {}", some_of(repeated.iter().copied())))
                .help("choose a column that names each row, or leave `id` out to number the rows")),
        }
    }

    fn drop_filtered(&self, keep: &mut [bool], cleaning: &mut Cleaning) -> Result<(), StageError> {
        let Some(text) = &self.config.filter else { return Ok(()) };
        let condition = sql::expression("`filter`", text)?;
        sql::check_columns("`filter`", &condition, self.schema.fields().iter().map(|field| field.name().as_str()))?;
        let read = sql::columns(&condition);
        let columns = self.schema.fields().iter().filter(|field| read.contains(field.name()));
        let columns = columns.map(|field| self.raw_column(field)).collect::<Result<_, _>>()?;
        let source = Source { columns, missing_values: self.config.missing_values.clone(), ..Source::default() };
        let doing = || format!("filtering by {text}");
        // A column beside it, so that a condition on constants gives a value for each row.
        let frame = source.frame(&self.batches)?.lazy().with_columns([condition.alias("(holds)")]).collect().doing(doing)?;
        let holds = frame.column("(holds)").doing(doing)?.bool().doing(doing)?.clone();
        for (row, holds) in holds.iter().enumerate() {
            if keep[row] && holds != Some(true) {
                keep[row] = false;
                cleaning.drop_row(&self.ids[row], "filter", None);
            }
        }
        Ok(())
    }

    /// The kind that a raw column is read as.
    fn raw_column(&self, field: &Field) -> Result<RawColumn, StageError> {
        let name = field.name();
        let stored = ColumnKind::of(field.data_type()).ok_or_else(|| {
            StageError::new(format!("the column `{name}` has type {}, which process.table cannot use", field.data_type()))
                .help(format!("add \"{name}\" to `drop`, or store it as numbers, text, booleans or dates"))
        })?;
        Ok(RawColumn { name: name.clone(), kind: self.config.types.get(name).copied().unwrap_or(stored), needed: true })
    }

    /// What f reads and computes: the features' raw columns, and what SQL needs beside them.
    fn source(&self) -> Result<Source, StageError> {
        let config = self.config;
        let roles: Vec<&String> = [Some(&config.label), config.id.as_ref(), config.split.column.as_ref()].into_iter().flatten().collect();
        let derive = in_order(&config.derive, self.schema)?;
        let read: BTreeSet<String> = derive
            .iter()
            .map(|one| sql::expression(&format!("`derive.{}`", one.name), &one.expression))
            .collect::<Result<Vec<_>, _>>()?
            .iter()
            .flat_map(sql::columns)
            .collect();
        if let Some(name) = read.iter().find(|name| **name == config.label) {
            return Err(StageError::new(format!("`derive` reads the label `{name}`, which new data does not have"))
                .help("derive from other columns"));
        }
        let mut columns = Vec::new();
        for field in self.schema.fields().iter().filter(|field| !roles.contains(&field.name())) {
            let dropped = config.drop.contains(field.name());
            let usable = ColumnKind::of(field.data_type()).is_some();
            if !dropped || read.contains(field.name()) || (config.sql.is_some() && usable) {
                columns.push(self.raw_column(field)?);
            }
        }
        Ok(Source { columns, missing_values: config.missing_values.clone(), sql: config.sql.clone(), derive })
    }

    /// The columns that become features, with their kinds.
    fn feature_columns(&self, frame: &DataFrame) -> Result<Vec<(String, ColumnKind)>, StageError> {
        let config = self.config;
        let names: Vec<&str> = frame.get_column_names().into_iter().map(|name| name.as_str()).collect();
        let one_hot = match &config.one_hot {
            OneHot::Columns(columns) => columns.as_slice(),
            OneHot::Word(_) => &[],
        };
        for (key, name) in
            one_hot.iter().map(|name| ("one_hot", name)).chain(config.missing.columns.keys().map(|name| ("missing.columns", name)))
        {
            if !names.contains(&name.as_str()) {
                return Err(unknown(key, name, names.iter().copied()));
            }
        }
        for name in &config.drop {
            if !names.contains(&name.as_str()) && self.schema.column_with_name(name).is_none() {
                return Err(unknown(
                    "drop",
                    name,
                    self.schema.fields().iter().map(|field| field.name().as_str()).chain(config.derive.keys().map(String::as_str)),
                ));
            }
        }
        let mut columns = Vec::new();
        for column in frame.columns().iter().filter(|column| !config.drop.iter().any(|name| name == column.name().as_str())) {
            let kind = source::kind(column.dtype()).ok_or_else(|| {
                StageError::new(format!("the SQL column `{}` has type {}, which cannot become a feature", column.name(), column.dtype()))
                    .help("cast it to a number or text")
            })?;
            columns.push((column.name().to_string(), kind));
        }
        match columns.is_empty() {
            true => Err(StageError::new("no column is left to learn from").help("`drop` takes columns out; `sql` may select none")),
            false => Ok(columns),
        }
    }

    /// Rows that lack a value in a column whose strategy is `drop`; refuses those of `fail`.
    fn drop_missing(
        &self,
        frame: &DataFrame,
        columns: &[(String, ColumnKind)],
        keep: &mut [bool],
        cleaning: &mut Cleaning,
    ) -> Result<(), StageError> {
        for (name, kind) in columns {
            let strategy = self.config.strategy(name, *kind);
            if !matches!(strategy, Strategy::Drop | Strategy::Fail) {
                continue;
            }
            let missing: Vec<usize> = match kind {
                ColumnKind::Number | ColumnKind::Boolean => gaps(&source::numbers(frame, name)?),
                _ => gaps(&source::words(frame, name)?),
            };
            let missing: Vec<usize> = missing.into_iter().filter(|row| keep[*row]).collect();
            if strategy == Strategy::Fail && !missing.is_empty() {
                let ids: Vec<&str> = missing.iter().map(|row| self.ids[*row].as_str()).collect();
                return Err(StageError::new(format!("the column `{name}` has no value in {} of {} rows", missing.len(), keep.len()))
                    .at(format!("id {}", some_of(ids.iter().copied())))
                    .help("fill the rows in, or choose another strategy in `missing`"));
            }
            for row in missing {
                keep[row] = false;
                cleaning.drop_row(&self.ids[row], "missing", None);
            }
        }
        Ok(())
    }

    fn split(&self, kept: &[usize], digests: &[[u8; 32]]) -> Vec<Split> {
        let names = transform::classes::sorted(kept.iter().filter_map(|row| self.labels[*row].as_deref()));
        let codes: HashMap<&str, usize> = names.iter().enumerate().map(|(code, name)| (name.as_str(), code)).collect();
        let member = |row: &usize| Member {
            // Row numbers depend on the order of rows; without ids the content names a row.
            key: if self.config.id.is_some() { self.ids[*row].as_bytes() } else { &digests[*row] },
            class: self.labels[*row].as_deref().and_then(|label| codes.get(label).copied()),
            given: self.given[*row],
        };
        let members: Vec<Member> = kept.iter().map(member).collect();
        split::assign(&members, &self.config.split.fractions(), self.config.seed.unwrap_or_default())
    }

    fn fit(
        &self,
        frame: &DataFrame,
        columns: &[(String, ColumnKind)],
        train: &[usize],
    ) -> Result<(Vec<Feature>, Vec<ColumnChange>), StageError> {
        let (mut features, mut changes) = (Vec::new(), Vec::new());
        for (name, kind) in columns {
            let (feature, change) = fit::column(self.config, frame, name, *kind, train)?;
            features.extend(feature);
            changes.push(change);
        }
        if features.is_empty() {
            let why: Vec<String> =
                changes.iter().filter_map(|change| Some(format!("{}: {}", change.column, change.left_out.as_ref()?))).collect();
            return Err(StageError::new(format!("no column tells anything: {}", why.join("; "))));
        }
        Ok((features, changes))
    }

    /// f, with no more raw and derived columns than the features need.
    fn transform(&self, mut source: Source, origins: &sql::Origins, classes: Vec<String>, features: Vec<Feature>) -> TableTransform {
        let needed: BTreeSet<&String> = features.iter().filter_map(|feature| origins.get(&feature.column)).flatten().collect();
        source.columns.iter_mut().for_each(|column| column.needed = needed.contains(&column.name));
        let mut wanted: BTreeSet<String> = features.iter().map(|feature| feature.column.clone()).collect();
        let mut derive = Vec::new();
        // Backwards: what a wanted column reads is wanted too.
        for one in source.derive.iter().rev() {
            if wanted.contains(&one.name) {
                wanted.extend(sql::expression("", &one.expression).map(|expression| sql::columns(&expression)).unwrap_or_default());
                derive.push(one.clone());
            }
        }
        derive.reverse();
        source.derive = derive;
        if source.sql.is_none() {
            source.columns.retain(|column| column.needed);
        }
        TableTransform { id: self.config.id.clone(), label: Some(self.config.label.clone()), classes, source, features }
    }

    fn write(
        &self,
        context: &RunContext,
        transform: &TableTransform,
        frame: &DataFrame,
        kept: &[usize],
        splits: &[Split],
    ) -> Result<(), StageError> {
        let names = transform.feature_names();
        let values = transform.encode(frame)?;
        let mut fields = vec![
            Field::new("id", DataType::Utf8, false),
            Field::new("label", DataType::Utf8, true),
            Field::new("split", DataType::Utf8, false),
        ];
        fields.extend(names.iter().map(|name| Field::new(name, DataType::Float32, false)));
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(kept.iter().map(|row| &self.ids[*row]))),
            Arc::new(StringArray::from_iter(kept.iter().map(|row| self.labels[*row].as_deref()))),
            Arc::new(StringArray::from_iter_values(splits.iter().map(|split| split.name()))),
        ];
        let column = |index: usize| Float32Array::from_iter_values(values.iter().skip(index).step_by(names.len()).copied());
        columns.extend((0..names.len()).map(|index| Arc::new(column(index)) as ArrayRef));
        let schema = Arc::new(Schema::new(fields));
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns).doing(|| "putting the features together".into())?;
        let batches = [batch];
        table::write_table(&context.output().join(DATA_FILE), &schema, &batches)?;
        Profile::of_table(&batches, Some("label"), Some("split"))?.write(context.output())
    }
}

/// One batch of [`Work::digests`]. Words, not the bits of a type: 1 and 1.0 are the same value.
fn row_digests(batch: &RecordBatch) -> Result<Vec<[u8; 32]>, StageError> {
    let mut rows = vec![Vec::new(); batch.num_rows()];
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        if ColumnKind::of(field.data_type()).is_none() {
            continue;
        }
        let words = raw::texts(field.name(), std::slice::from_ref(column), &[])?;
        for (row, word) in rows.iter_mut().zip(&words) {
            let length = word.as_ref().map_or(u64::MAX, |word| word.len() as u64);
            row.extend(length.to_le_bytes());
            row.extend(word.as_deref().unwrap_or_default().as_bytes());
        }
    }
    Ok(rows.iter().map(|row| *blake3::hash(row).as_bytes()).collect())
}

fn gaps<T>(values: &[Option<T>]) -> Vec<usize> {
    (0..values.len()).filter(|row| values[*row].is_none()).collect()
}

fn unknown<'a>(key: &str, name: &str, known: impl Iterator<Item = &'a str>) -> StageError {
    StageError::new(format!("`{key}` names the column `{name}`, which does not exist")).help(config::suggest(name, known))
}

/// Every raw column that the config names must be there.
fn check_names(config: &Table, schema: &SchemaRef) -> Result<(), StageError> {
    let known = || schema.fields().iter().map(|field| field.name().as_str());
    let mut named = vec![("label", &config.label)];
    named.extend(config.id.as_ref().map(|name| ("id", name)));
    named.extend(config.split.column.as_ref().map(|name| ("split.column", name)));
    named.extend(config.types.keys().map(|name| ("types", name)));
    match named.into_iter().find(|(_, name)| !known().any(|one| one == *name)) {
        Some((key, name)) => Err(unknown(key, name, known())),
        None => Ok(()),
    }
}

/// Derived columns such that each stands after those it reads.
fn in_order(derive: &BTreeMap<String, String>, schema: &SchemaRef) -> Result<Vec<Derived>, StageError> {
    let mut left: BTreeMap<&String, BTreeSet<String>> = BTreeMap::new();
    for (name, text) in derive {
        if schema.column_with_name(name).is_some() {
            return Err(
                StageError::new(format!("`derive.{name}` has the name of a column that exists already")).help("give it a name of its own")
            );
        }
        left.insert(name, sql::columns(&sql::expression(&format!("`derive.{name}`"), text)?));
    }
    let mut ordered = Vec::new();
    while !left.is_empty() {
        let ready: Vec<&String> =
            left.iter().filter(|(_, read)| !read.iter().any(|name| left.contains_key(name))).map(|(name, _)| *name).collect();
        if ready.is_empty() {
            let names: Vec<&str> = left.keys().map(|name| name.as_str()).collect();
            return Err(StageError::new(format!("derived columns read each other in a circle: {}", names.join(", "))));
        }
        for name in ready {
            left.remove(name);
            ordered.push(Derived { name: name.clone(), expression: derive[name].clone() });
        }
    }
    Ok(ordered)
}

/// No two features may share a name, nor take one of the processed table's own.
fn check_feature_names(transform: &TableTransform) -> Result<(), StageError> {
    let mut seen: BTreeSet<String> = OWN_COLUMNS.map(str::to_owned).into();
    match transform.feature_names().into_iter().find(|name| !seen.insert(name.clone())) {
        Some(name) => Err(StageError::new(format!("a feature would be called `{name}`, and there is a column of that name already")).help(
            format!("derive it under another name and drop the original: `derive = {{ other = '\"{name}\"' }}`, `drop = [\"{name}\"]`"),
        )),
        None => Ok(()),
    }
}

/// Columns that were changed go into the report; those left out are said aloud.
fn report_changes(cleaning: &mut Cleaning, changes: Vec<ColumnChange>) {
    for change in changes {
        if let Some(why) = &change.left_out {
            cleaning.notes.push(format!("the column `{}` is no feature: {why}", change.column));
        }
        if change.unseen > 0 {
            cleaning.notes.push(format!(
                "the column `{}` has categories in {} rows of validation or test that train does not have",
                change.column, change.unseen
            ));
        }
        if change.left_out.is_some() || change.filled + change.clipped + change.unseen > 0 {
            cleaning.columns.push(change);
        }
    }
}

#[cfg(test)]
mod tests;
