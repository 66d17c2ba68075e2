//! The options of this command line once more, for runs that start from another folder and with another environment.

use std::fmt::Display;

use artifact::ObjectStore;

use crate::cli::{Global, Manner};
use crate::folder::{absolute, absolute_unless_url};

/// What holds for a run of all that was given, in variables (`EPISTEME_MIRROR`, …) too. Paths are absolute.
pub fn of(global: &Global, store: &ObjectStore, manner: &Manner) -> Vec<String> {
    // Taken apart whole: an option that is added has to be thought of here.
    let Global { store: _, mirrors, jobs, sets, openlineage, params, json: _, quiet: _, color: _, types: _ } = global;
    let Manner { keep_going, cores, memory, export } = manner;
    let mut words = Vec::new();
    let mut add = |name: &str, value: &dyn Display| words.extend([format!("--{name}"), value.to_string()]);
    add("store", &store.root().display());
    mirrors.iter().filter(|mirror| !mirror.is_empty()).for_each(|mirror| add("mirror", &absolute_unless_url(mirror)));
    params.iter().for_each(|file| add("params", &absolute(file)));
    sets.iter().for_each(|set| add("set", set));
    openlineage.iter().filter(|target| !target.is_empty()).for_each(|target| add("openlineage", &absolute_unless_url(target)));
    jobs.iter().for_each(|jobs| add("jobs", jobs));
    cores.iter().for_each(|cores| add("cores", cores));
    memory.iter().for_each(|bytes| add("memory", &format!("{bytes}B")));
    export.iter().for_each(|folder| add("export", &absolute(folder)));
    words.extend(keep_going.then(|| "--keep-going".to_owned()));
    words
}
