//! Posting JSON to a URL: signed, and tried again with back-off.

use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::rules::secret::Secret;

/// One try may take so long.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The pause before the second try; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The header with the signature: `sha256=` and the HMAC-SHA256 (RFC 2104) of the body in hex, as GitHub signs its webhooks.
pub const SIGNATURE: &str = "X-Episteme-Signature";

/// Where to post, and how.
pub struct Webhook<'a> {
    /// The URL.
    pub url: &'a str,
    /// What the body is signed with.
    pub key: Option<&'a Secret>,
    /// `Authorization: Bearer …`.
    pub token: Option<&'a Secret>,
    /// How often a passing fault is tried again.
    pub retries: u32,
}

impl Webhook<'_> {
    /// Posts `body` until it is taken, the tries are used up, or `stop` says so.
    ///
    /// # Errors
    /// The last fault, in words; a lasting one (4xx) at once. The URL, which may be a secret itself, is not in it.
    pub fn post(&self, body: &[u8], stop: &dyn Fn() -> bool) -> Result<(), String> {
        let mut pause = FIRST_PAUSE;
        for attempt in 0.. {
            let fault = match self.once(body) {
                Ok(()) => return Ok(()),
                Err(Fault::Lasting(fault)) => return Err(fault),
                Err(Fault::Passing(fault)) => fault,
            };
            if attempt >= self.retries || stop() {
                return Err(format!("{fault}, tried {} times", attempt + 1));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        Ok(())
    }

    fn once(&self, body: &[u8]) -> Result<(), Fault> {
        let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false).build().into();
        let mut request = agent.post(self.url).header("Content-Type", "application/json");
        if let Some(key) = self.key {
            request = request.header(SIGNATURE, format!("sha256={}", hex(&hmac_sha256(key.reveal().as_bytes(), body))));
        }
        if let Some(token) = self.token {
            request = request.header("Authorization", format!("Bearer {}", token.reveal()));
        }
        let answer = request.send(body).map_err(|error| Fault::Passing(error.to_string().replace(self.url, "the URL")))?;
        match answer.status().as_u16() {
            200..=299 => Ok(()),
            code @ (408 | 425 | 429 | 500..=599) => Err(Fault::Passing(format!("it answered {code}"))),
            code => Err(Fault::Lasting(format!("it answered {code}"))),
        }
    }
}

enum Fault {
    /// Trying again may help.
    Passing(String),
    /// It will not.
    Lasting(String),
}

/// Scheme and host: what of a URL can be shown.
pub fn host(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    format!("{scheme}://{}", authority.rsplit('@').next().unwrap_or_default())
}

/// HMAC (RFC 2104) with SHA-256: H(key ⊕ opad ‖ H(key ⊕ ipad ‖ message)).
fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; 32] {
    const BLOCK: usize = 64;
    let mut block = [0u8; BLOCK];
    match key.len() > BLOCK {
        true => block[..32].copy_from_slice(&Sha256::digest(key)),
        false => block[..key.len()].copy_from_slice(key),
    }
    let pad = |byte: u8| block.map(|key| key ^ byte);
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_the_published_ones() {
        // RFC 4231, test cases 1, 2 and 6.
        let table: [(&[u8], &[u8], &str); 3] = [
            (&[0x0b; 20], b"Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
            (b"Jefe", b"what do ya want for nothing?", "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
            (
                &[0xaa; 131],
                b"Test Using Larger Than Block-Size Key - Hash Key First",
                "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
            ),
        ];
        for (key, message, expected) in table {
            assert_eq!(hex(&hmac_sha256(key, message)), expected);
        }
    }

    #[test]
    fn of_a_url_only_its_host_is_shown() {
        assert_eq!(host("https://user:pass@example.com:8080/hook/token?x=1"), "https://example.com:8080");
        assert_eq!(host("https://example.com"), "https://example.com");
    }
}
