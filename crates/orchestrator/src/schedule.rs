//! Crontab lines for pipelines with a schedule.

use std::path::Path;

use crate::plan::Plan;

/// A comment and a line for crontab; none for a pipeline without a schedule.
///
/// Paths are absolute, since cron starts in the home folder. Two runs of one pipeline never overlap: the second leaves
/// quietly. Warnings and failures go to the log, and the exit code tells cron.
pub fn crontab(plan: &Plan, executable: &Path, store: &Path, mirrors: &[String]) -> Option<String> {
    let schedule = plan.schedule.as_ref()?;
    let file = plan.file.canonicalize().unwrap_or_else(|_| plan.file.clone());
    let mirrors: String = mirrors.iter().map(|mirror| format!(" --mirror {}", quoted(mirror))).collect();
    let log = store.join("runs").join(format!("{}.cron.log", plan.name));
    let [executable, file, store, log] = [executable, &file, store, &log].map(|path| quoted(&path.to_string_lossy()));
    let comment =
        if plan.description.is_empty() { plan.name.clone() } else { format!("{}: {}", plan.name, plan.description.replace('\n', " ")) };
    Some(format!("# {comment}\n{schedule} {executable} run {file} --store {store}{mirrors} --on-busy skip --quiet >> {log} 2>&1\n"))
}

/// Quoted for the shell, and with `%`, which crontab takes for a line break, escaped.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@=,".contains(c);
    let quoted = if !text.is_empty() && text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) };
    quoted.replace('%', r"\%")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_for_the_shell_and_for_crontab() {
        assert_eq!(quoted("/a/b-c.toml"), "/a/b-c.toml");
        assert_eq!(quoted("/a b/it's"), r"'/a b/it'\''s'");
        assert_eq!(quoted("100%"), r"'100\%'");
    }
}
