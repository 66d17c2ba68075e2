//! `episteme tag`: what a person does with tags.

use std::path::Path;

use artifact::worker::DONE;
use artifact::{Manifest, ObjectStore, StageError};

use crate::cli::Global;
use crate::document::{Document, Named};
use crate::tag::{self, Tag};
use crate::verbs::print_document;
use crate::{Failure, render, resolve, verbs};

/// Lists, shows, sets or removes.
///
/// # Errors
/// When the name is no tag's, or what it is to name is not there.
pub fn tag(global: &Global, name: Option<&str>, what: Option<&str>, remove: bool, pipeline: &Path) -> Result<u8, Failure> {
    let store = verbs::store_that_is_there(global)?;
    match (name, what) {
        (None, _) => list(global, &store),
        (Some(name), None) if remove => take_away(global, &store, name),
        (Some(name), None) => match tag::read(&store, name)? {
            Some(tag) => tell(global, &store, Document::Tag, name, &tag),
            None => Err(no_tag(&store, name)),
        },
        (Some(name), Some(what)) => set(global, &store, name, what, pipeline),
    }
}

fn set(global: &Global, store: &ObjectStore, name: &str, what: &str, pipeline: &Path) -> Result<u8, Failure> {
    tag::check_name(name).map_err(|why| {
        let error = StageError::new(format!("`{}` cannot name a tag: {why}", name.escape_debug()));
        Failure::Asked(error.help("such as `model:best` or `production`"))
    })?;
    let artifact = resolve::artifact(global, store, what, pipeline)?;
    let metrics = Manifest::read(&store.object(&artifact))?.outcome.metrics;
    let tag = Tag { artifact, run: None, set: jiff::Timestamp::now().to_string(), metrics };
    tag::write(store, name, &tag)?;
    tell(global, store, Document::Tagged, name, &tag)
}

fn take_away(global: &Global, store: &ObjectStore, name: &str) -> Result<u8, Failure> {
    if !tag::remove(store, name)? {
        return Err(no_tag(store, name));
    }
    if global.json {
        return print_document(&Document::TagRemoved { tag: name.to_owned() });
    }
    anstream::println!("{name} is gone; the artifact stays until `episteme gc` finds that nothing needs it");
    Ok(DONE)
}

fn list(global: &Global, store: &ObjectStore) -> Result<u8, Failure> {
    let tags = tag::all(store)?;
    if global.json {
        return print_document(&Document::Tags { tags });
    }
    if tags.is_empty() {
        anstream::eprintln!("there are no tags on {}: `episteme tag model:best model` sets one", store.root().display());
    }
    let width = tags.keys().map(String::len).max().unwrap_or_default();
    tags.iter().for_each(|(name, tag)| anstream::println!("{}", line(store, name, tag, width)));
    Ok(DONE)
}

fn tell(global: &Global, store: &ObjectStore, what: fn(Named) -> Document, name: &str, tag: &Tag) -> Result<u8, Failure> {
    if global.json {
        return print_document(&what(Named { tag: name.to_owned(), record: tag.clone(), path: store.object(&tag.artifact) }));
    }
    anstream::println!("{}", line(store, name, tag, name.len()));
    Ok(DONE)
}

/// Name, digest, what it is, who set it.
fn line(store: &ObjectStore, name: &str, tag: &Tag, width: usize) -> String {
    let is = Manifest::read(&store.object(&tag.artifact)).map_or_else(|_| "not there".to_owned(), |manifest| manifest.kind.to_string());
    let by = tag.run.as_ref().map(|run| format!(" by {run}")).unwrap_or_default();
    format!("{name:<width$}  {}  {is}, set {}{by}", tag.artifact.short(), render::moment(&tag.set))
}

fn no_tag(store: &ObjectStore, name: &str) -> Failure {
    let known = tag::all(store).unwrap_or_default();
    let error = StageError::new(format!("there is no tag `{}` on {}", name.escape_debug(), store.root().display()));
    Failure::Asked(error.help(artifact::config::suggest(name, known.keys().map(String::as_str))))
}
