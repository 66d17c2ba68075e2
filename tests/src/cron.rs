//! Programs in the place of cron and systemd, so that a test touches neither.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::{Said, Scratch, finish};

/// Keeps its table in the file `table`.
const CRONTAB: &str = "#!/bin/sh\ncd \"$FAKE\"\ncase $1 in -l) [ -f table ] || { echo 'no crontab for me' >&2; exit 1; }; cat table;; -) cat > table;; esac\n";
/// Notes in the file `systemctl` what it was told; fails where there is a file `no-systemd`.
const SYSTEMCTL: &str = "#!/bin/sh\n[ ! -e \"$FAKE/no-systemd\" ] || { echo 'no bus' >&2; exit 1; }\necho \"$@\" >> \"$FAKE/systemctl\"\n";

impl Scratch {
    /// Runs `episteme ARGS` with a `crontab` and a `systemctl` of our own, and a folder `config` for units.
    pub fn with_cron(&self, args: &[&str]) -> Said {
        for (name, text) in [("crontab", CRONTAB), ("systemctl", SYSTEMCTL)] {
            let path = self.write(&format!("bin/{name}"), text);
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let path = format!("{}:{}", self.path().join("bin").display(), std::env::var("PATH").unwrap_or_default());
        let mut command = self.command(args);
        command.env("PATH", path).env("FAKE", self.path()).env("XDG_CONFIG_HOME", self.path().join("config"));
        finish(command)
    }

    /// What is in the crontab.
    pub fn crontab(&self) -> String {
        fs::read_to_string(self.path().join("table")).unwrap_or_default()
    }
}
