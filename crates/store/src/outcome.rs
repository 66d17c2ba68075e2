//! What every store stage does at its end: the profile beside the data, and the schema in the manifest.

use std::path::Path;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use artifact::{Outcome, StageError};
use dataset::{DATA_FILE, Images, Profile};
use serde_json::{Value, json};

/// Profiles the image dataset that was just written.
pub(crate) fn of_images(output: &Path) -> Result<Outcome, StageError> {
    let profile = Profile::of_images(&Images::read(&output.join(DATA_FILE))?);
    profile.write(output)?;
    let shape = profile.image.as_ref().map(|image| image.shape);
    let columns = shape.map(|shape| columns(&dataset::writer::schema(shape)));
    Ok(Outcome {
        rows: Some(profile.rows),
        schema: json!({ "kind": "image", "shape": shape, "classes": classes(&profile), "splits": profile.splits, "columns": columns }),
        ..Outcome::default()
    })
}

/// Writes a table and its profile; `label` and `split` name its columns of that meaning, where it has them.
pub(crate) fn of_table(
    output: &Path,
    schema: &SchemaRef,
    batches: &[RecordBatch],
    label: Option<&str>,
    split: Option<&str>,
) -> Result<Outcome, StageError> {
    let rows = dataset::table::write_table(&output.join(DATA_FILE), schema, batches)?;
    let profile = Profile::of_table(batches, label, split)?;
    profile.write(output)?;
    let mut stated = json!({ "kind": "table", "columns": columns(schema) });
    if label.is_some() {
        stated["classes"] = json!(classes(&profile));
    }
    if split.is_some() {
        stated["splits"] = json!(profile.splits);
    }
    Ok(Outcome { rows: Some(rows), schema: stated, ..Outcome::default() })
}

fn columns(schema: &Schema) -> Vec<Value> {
    let column = |field: &arrow::datatypes::FieldRef| json!({ "name": field.name(), "type": field.data_type().to_string(), "nullable": field.is_nullable() });
    schema.fields().iter().map(column).collect()
}

/// Class names; numbers by value, all else by text.
fn classes(profile: &Profile) -> Vec<&str> {
    let mut classes: Vec<&str> = profile.classes.keys().map(String::as_str).collect();
    if let Ok(mut numbered) = classes.iter().map(|class| class.parse::<i64>().map(|number| (number, *class))).collect::<Result<Vec<_>, _>>()
    {
        numbered.sort_unstable();
        classes = numbered.into_iter().map(|(_, class)| class).collect();
    }
    classes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbered_classes_stand_in_the_order_of_their_numbers() {
        let profile = |names: &[&str]| Profile {
            classes: names.iter().map(|name| ((*name).to_owned(), Default::default())).collect(),
            ..Profile::default()
        };
        assert_eq!(classes(&profile(&["10", "2", "0"])), ["0", "2", "10"]);
        assert_eq!(classes(&profile(&["10", "2", "x"])), ["10", "2", "x"]);
    }
}
