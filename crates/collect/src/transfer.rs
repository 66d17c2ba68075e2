//! Bringing one file here: from the first place whose content fits its SHA-256.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use artifact::{Doing, RunContext, StageError};
use sha2::{Digest as _, Sha256};
use ureq::http::StatusCode;

use crate::source::{Place, Source};

/// The first pause before a retry; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// No pause is longer, whatever a server asks for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// A server that does not answer for so long is given up on.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
/// One request may take so long; what came is kept, and the next goes on from there.
const BODY_TIMEOUT: Duration = Duration::from_secs(1800);

/// A file that is wanted.
pub struct Wanted {
    /// What it is called.
    pub name: String,
    /// Lower-case hex.
    pub sha256: String,
    /// Where it goes once it is checked.
    pub target: PathBuf,
    /// Where it may be, in order.
    pub sources: Vec<Source>,
}

/// Why a try did not bring the file.
enum Failed {
    /// Trying again may help; not before the pause, if the server named one.
    Passing(String, Option<Duration>),
    /// Trying here again will not help.
    Lasting(String),
    /// The stage itself cannot go on: no disk, or it was asked to stop.
    Stage(StageError),
}

impl From<StageError> for Failed {
    fn from(error: StageError) -> Self {
        Self::Stage(error)
    }
}

/// A client with its patience.
pub struct Transfer<'a> {
    agent: ureq::Agent,
    retries: u32,
    context: &'a RunContext<'a>,
}

impl<'a> Transfer<'a> {
    /// A client that retries passing faults so often.
    pub fn new(retries: u32, context: &'a RunContext<'a>) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(SILENCE_TIMEOUT))
            .timeout_recv_body(Some(BODY_TIMEOUT))
            .http_status_as_error(false)
            .user_agent(concat!("episteme/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { agent: config.into(), retries, context }
    }

    /// Brings the file to its target. A file that is there already and fits is taken as it is.
    ///
    /// # Errors
    /// Every place that was tried and why it did not serve.
    pub fn fetch(&self, wanted: &Wanted) -> Result<(), StageError> {
        if wanted.target.is_file() && self.sha256(&wanted.target)? == wanted.sha256 {
            return Ok(());
        }
        let mut tried = Vec::new();
        for source in &wanted.sources {
            let result = match &source.place {
                Place::Path(path) => self.copy(path, wanted),
                Place::Url(url) => self.download_patiently(url, source.is_mirror, wanted),
            };
            match result {
                Ok(()) => return Ok(()),
                Err(Failed::Stage(error)) => return Err(error),
                Err(Failed::Passing(why, _) | Failed::Lasting(why)) => {
                    if source.is_mirror && why.contains("SHA-256") {
                        self.context.warn(format!("the mirror's {} is passed over: {why}", source.shown()));
                    }
                    tried.push(format!("{}: {why}", source.shown()));
                }
            }
        }
        let mut error = StageError::new(format!("`{}` could not be had from any of {} places", wanted.name, tried.len()))
            .help("name a folder or address that has it with --mirror or EPISTEME_MIRROR (laid out as <dataset>/<file>, or flat), or try again when the network is there: what has come so far is kept");
        error.causes = tried;
        Err(error)
    }

    /// From a folder of this machine.
    fn copy(&self, path: &Path, wanted: &Wanted) -> Result<(), Failed> {
        if !path.is_file() {
            return Err(Failed::Lasting("there is no such file".into()));
        }
        let part = part_of(&wanted.target);
        let mut from = File::open(path).map_err(|error| Failed::Lasting(error.to_string()))?;
        let mut to = File::create(&part).doing(|| format!("creating {}", part.display()))?;
        let total = from.metadata().ok().map(|data| data.len());
        self.pump(&mut from, &mut to, &wanted.name, 0, total)?;
        drop(to);
        self.accept(&part, wanted)
    }

    fn download_patiently(&self, url: &str, is_mirror: bool, wanted: &Wanted) -> Result<(), Failed> {
        let retries = if is_mirror { self.retries.min(1) } else { self.retries };
        let mut pause = FIRST_PAUSE;
        for attempt in 0.. {
            match self.download(url, wanted) {
                Err(Failed::Passing(why, asked)) if attempt < retries => {
                    let pause_now = asked.unwrap_or(pause).min(LONGEST_PAUSE);
                    self.context.info(format!("{}: {why}; trying again in {:.1} s", wanted.name, pause_now.as_secs_f64()));
                    self.sleep(pause_now)?;
                    pause *= 2;
                }
                done => return done,
            }
        }
        Ok(())
    }

    /// One request; goes on where an earlier one was cut.
    fn download(&self, url: &str, wanted: &Wanted) -> Result<(), Failed> {
        let part = part_of(&wanted.target);
        let have = fs::metadata(&part).map_or(0, |data| data.len());
        let request = self.agent.get(url);
        let request = if have > 0 { request.header("Range", format!("bytes={have}-")) } else { request };
        let response = request.call().map_err(|error| passing(&error))?;
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let length = header("content-length").and_then(|text| text.parse::<u64>().ok());
        let goes_on = response.status() == StatusCode::PARTIAL_CONTENT
            && header("content-range").is_some_and(|range| range.starts_with(&format!("bytes {have}-")));
        match response.status() {
            status if status.is_success() && (goes_on || status != StatusCode::PARTIAL_CONTENT) => {}
            StatusCode::RANGE_NOT_SATISFIABLE => {
                // Either all of it is here, or what is here is of something else.
                return self.accept(&part, wanted).map_err(|failed| match failed {
                    Failed::Lasting(why) => Failed::Passing(why, Some(Duration::ZERO)),
                    other => other,
                });
            }
            StatusCode::PARTIAL_CONTENT => {
                let _ = fs::remove_file(&part);
                return Err(Failed::Passing("the server sent another range than was asked for".into(), Some(Duration::ZERO)));
            }
            status => {
                let why = format!("the server answered {status}");
                let asked = header("retry-after").and_then(|text| text.parse().ok()).map(Duration::from_secs);
                let may_pass = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::REQUEST_TIMEOUT;
                return Err(if may_pass { Failed::Passing(why, asked) } else { Failed::Lasting(why) });
            }
        }
        let start = if goes_on { have } else { 0 };
        let opening = || format!("creating {}", part.display());
        let opened = if goes_on { File::options().append(true).open(&part) } else { File::create(&part) };
        let mut to = opened.doing(opening)?;
        let total = length.map(|length| start + length);
        let came = start + self.pump(&mut response.into_body().into_reader(), &mut to, &wanted.name, start, total)?;
        drop(to);
        if total.is_some_and(|total| came < total) {
            return Err(Failed::Passing(format!("the connection ended after {came} of {} bytes", total.unwrap_or_default()), None));
        }
        self.accept(&part, wanted).map_err(|failed| match failed {
            // The beginning may be of an older version: once more, from the start.
            Failed::Lasting(why) if goes_on => Failed::Passing(why, Some(Duration::ZERO)),
            other => other,
        })
    }

    /// Copies until the end; the number of bytes.
    fn pump(&self, from: &mut impl Read, to: &mut File, name: &str, start: u64, total: Option<u64>) -> Result<u64, Failed> {
        let progress = self.context.progress(name, total, "bytes");
        progress.add(start);
        let mut buffer = vec![0u8; 1 << 16];
        let mut came = 0;
        loop {
            self.context.check_stop()?;
            let read = match from.read(&mut buffer) {
                Ok(0) => return Ok(came),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // What came is kept: the next try goes on from here.
                Err(error) => return Err(Failed::Passing(format!("the connection broke after {} bytes: {error}", start + came), None)),
            };
            to.write_all(&buffer[..read]).doing(|| format!("writing {name}"))?;
            came += read as u64;
            progress.add(read as u64);
        }
    }

    /// Checks a complete download and gives it its name; one that does not fit is thrown away.
    fn accept(&self, part: &Path, wanted: &Wanted) -> Result<(), Failed> {
        let found = self.sha256(part)?;
        if found != wanted.sha256 {
            let _ = fs::remove_file(part);
            return Err(Failed::Lasting(format!("its SHA-256 is {found}, and {} is pinned", wanted.sha256)));
        }
        Ok(fs::rename(part, &wanted.target).doing(|| format!("renaming {}", part.display()))?)
    }

    fn sha256(&self, path: &Path) -> Result<String, StageError> {
        let reading = || format!("reading {}", path.display());
        let mut file = File::open(path).doing(reading)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0u8; 1 << 18];
        loop {
            self.context.check_stop()?;
            match file.read(&mut buffer).doing(reading)? {
                0 => break,
                read => hasher.update(&buffer[..read]),
            }
        }
        Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn sleep(&self, pause: Duration) -> Result<(), StageError> {
        let clock = Instant::now();
        while clock.elapsed() < pause {
            self.context.check_stop()?;
            std::thread::sleep((pause - clock.elapsed().min(pause)).min(Duration::from_millis(50)));
        }
        Ok(())
    }
}

fn part_of(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".part");
    PathBuf::from(name)
}

/// A request that got no answer. A name that does not resolve may be a network that is not up yet.
fn passing(error: &ureq::Error) -> Failed {
    match error {
        ureq::Error::BadUri(_) | ureq::Error::Tls(_) => Failed::Lasting(error.to_string()),
        _ => Failed::Passing(error.to_string(), None),
    }
}
