//! Where a file may come from.

use std::path::PathBuf;

/// One place that may have a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// How it is reached.
    pub place: Place,
    /// True for a mirror: it may well lack the file, so it is asked once and its failure is no news.
    pub is_mirror: bool,
}

/// A file of this machine, or an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A path.
    Path(PathBuf),
    /// `http://` or `https://`.
    Url(String),
}

impl Source {
    /// A file in a mirror, which is a folder or an address.
    pub fn mirror(place: &str) -> Self {
        Self { place: Place::of(place), is_mirror: true }
    }

    /// An address from the pipeline file.
    pub fn declared(url: &str) -> Self {
        Self { place: Place::of(url), is_mirror: false }
    }

    /// As messages name it: without secrets.
    pub fn shown(&self) -> String {
        match &self.place {
            Place::Path(path) => path.display().to_string(),
            Place::Url(url) => redacted(url),
        }
    }
}

impl Place {
    fn of(text: &str) -> Self {
        match text.strip_prefix("file://") {
            Some(path) => Self::Path(path.into()),
            None if text.starts_with("http://") || text.starts_with("https://") => Self::Url(text.to_owned()),
            None => Self::Path(text.into()),
        }
    }
}

/// An address without user, password and the values of its query, which may be keys.
pub fn redacted(url: &str) -> String {
    let (address, query) = url.split_once('?').map_or((url, None), |(address, query)| (address, Some(query)));
    let address = match address.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_once('/').map_or((rest, String::new()), |(host, path)| (host, format!("/{path}")));
            let host = host.rsplit_once('@').map_or(host.to_owned(), |(_, host)| format!("…@{host}"));
            format!("{scheme}://{host}{path}")
        }
        None => address.to_owned(),
    };
    match query {
        None => address,
        Some(query) => {
            let keys: Vec<String> = query.split('&').map(|pair| format!("{}=…", pair.split('=').next().unwrap_or_default())).collect();
            format!("{address}?{}", keys.join("&"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_and_keys_never_reach_a_message() {
        assert_eq!(redacted("https://me:secret@host.example/a/b.gz?token=abc&x=1"), "https://…@host.example/a/b.gz?token=…&x=…");
        assert_eq!(redacted("https://host.example/a"), "https://host.example/a");
    }

    #[test]
    fn a_mirror_may_be_a_folder_or_an_address() {
        assert_eq!(Source::mirror("/data/mnist/x.gz").place, Place::Path("/data/mnist/x.gz".into()));
        assert_eq!(Source::mirror("https://host.example/x.gz").place, Place::Url("https://host.example/x.gz".into()));
    }
}
