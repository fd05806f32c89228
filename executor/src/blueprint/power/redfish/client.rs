//! Requests to one controller, which is known by its certificate.
//!
//! ```text
//!  Trust: System ─── signed by an authority of this host, for the name in the URL
//!         Authority ─ signed by one of the file, for that name
//!         Pinned ──── this certificate; its name and dates do not matter, what the handshake is signed with does
//! ```

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use reqwest::{Method, StatusCode, Url};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::blueprint::driver::Mistake;
use crate::blueprint::power::web::{innermost, shown};

/// A request: controllers are slow computers, and collect some answers from the machine only then.
const REQUEST_TIME: Duration = Duration::from_secs(15);
/// A whole system with all its links has some tens of KiB.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// Which certificate is the controller's.
pub(super) enum Trust {
    System,
    Authority(Vec<reqwest::Certificate>),
    Pinned([u8; 32]),
}

impl Trust {
    pub(super) fn fingerprint(digits: &str) -> Result<Trust, Mistake> {
        let bare: Vec<u32> = digits.chars().filter(|it| *it != ':').map(|it| it.to_digit(16).unwrap_or(16)).collect();
        let hint = "write what `openssl x509 -noout -fingerprint -sha256` prints";
        let wrong = || Mistake::new("certificate_sha256", "it has no 64 hexadecimal digits", hint);
        if bare.len() != 64 || bare.contains(&16) {
            return Err(wrong());
        }
        let byte = |pair: &[u32]| u8::try_from(pair[0] << 4 | pair[1]).ok();
        let bytes: Option<Vec<u8>> = bare.chunks(2).map(byte).collect();
        bytes.and_then(|bytes| bytes.try_into().ok()).map(Trust::Pinned).ok_or_else(wrong)
    }

    pub(super) fn authority(file: &Path) -> Result<Trust, Mistake> {
        let wrong = |what: String| {
            let what = format!("{}: {what}", file.display());
            Mistake::new("certificate_authority", what, "write a file with certificates as PEM")
        };
        let text = std::fs::read(file).map_err(|error| wrong(error.to_string()))?;
        match reqwest::Certificate::from_pem_bundle(&text) {
            Ok(certificates) if !certificates.is_empty() => Ok(Trust::Authority(certificates)),
            Ok(_) => Err(wrong("there is no certificate in it".to_owned())),
            Err(error) => Err(wrong(innermost(error))),
        }
    }
}

/// A controller.
pub(super) struct Client {
    base: Url,
    user: String,
    password: String,
    client: reqwest::Client,
}

impl Client {
    pub(super) fn new(base: Url, user: String, password: String, trust: Trust) -> Result<Client, Mistake> {
        // Refuses when the process has a provider already, which is as good.
        let _ = ring::default_provider().install_default();
        let builder = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(REQUEST_TIME)
            // Controllers have room for a handful of connections.
            .pool_max_idle_per_host(0)
            .user_agent(concat!("wharfinger/", env!("CARGO_PKG_VERSION")));
        let builder = match trust {
            // A host without any authorities can still speak plain HTTP.
            Trust::System if base.scheme() == "http" => builder.tls_certs_only([]),
            Trust::System => builder,
            Trust::Authority(certificates) => builder.tls_certs_only(certificates),
            Trust::Pinned(fingerprint) => builder.tls_backend_preconfigured(pinned(fingerprint)?),
        };
        let client = builder.build().map_err(|error| cannot(&innermost(error)))?;
        Ok(Client { base, user, password, client })
    }

    /// Who is asked.
    pub(super) fn host(&self) -> String {
        let host = self.base.host_str().unwrap_or_default();
        self.base.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }

    pub(super) async fn get(&self, path: &str) -> Result<Value, String> {
        let text = self.ask(Method::GET, path, None).await?;
        serde_json::from_str(&text).map_err(|_| format!("{}{path} is no JSON but {}", self.host(), shown(&text)))
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<(), String> {
        self.ask(Method::POST, path, Some(body)).await.map(drop)
    }

    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<String, String> {
        let url = self.base.join(path).ok().filter(|url| url.origin() == self.base.origin());
        let url = url.ok_or_else(|| format!("{} sends us to {}, which is not its own", self.host(), shown(path)))?;
        let mut request = self.client.request(method, url).basic_auth(&self.user, Some(&self.password));
        request = request.header("Accept", "application/json").header("OData-Version", "4.0");
        if let Some(body) = body {
            request = request.header("Content-Type", "application/json").body(body.to_string());
        }
        let failed = |error: reqwest::Error| match error.is_timeout() {
            true => format!("{} gave no answer within {} s", self.host(), REQUEST_TIME.as_secs()),
            false => format!("{}: {}", self.host(), innermost(error.without_url())),
        };
        let response = request.send().await.map_err(failed)?;
        let status = response.status();
        let (mut bytes, mut chunks) = (Vec::new(), response.bytes_stream());
        while let Some(chunk) = chunks.next().await {
            bytes.extend_from_slice(&chunk.map_err(failed)?);
            if bytes.len() > ANSWER_BYTES_MAX {
                return Err(format!("{}{path} is longer than {} KiB", self.host(), ANSWER_BYTES_MAX / 1024));
            }
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        match status {
            status if status.is_success() => Ok(text),
            StatusCode::UNAUTHORIZED => Err(format!(
                "{} refuses the login: check `user` and `password`, and that it allows basic logins",
                self.host()
            )),
            StatusCode::FORBIDDEN => {
                Err(format!("{} does not let `{}` do that: {}", self.host(), self.user, why(&text)))
            }
            status => Err(format!("{}{path} answered {status}: {}", self.host(), why(&text))),
        }
    }
}

/// What an error says (DSP0266, "Error responses"): the message of its cause, or its own.
fn why(text: &str) -> String {
    let error = serde_json::from_str::<Value>(text).unwrap_or_default();
    let error = &error["error"];
    let messages = [&error["@Message.ExtendedInfo"][0]["Message"], &error["message"]];
    shown(messages.into_iter().find_map(Value::as_str).unwrap_or(text))
}

fn cannot(what: &str) -> Mistake {
    Mistake::new(
        "url",
        format!("no HTTP client can be made: {what}"),
        "install ca-certificates, or pin the certificate",
    )
}

fn pinned(fingerprint: [u8; 32]) -> Result<ClientConfig, Mistake> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| cannot(&error.to_string()))?;
    let verifier = Arc::new(OnlyThis { fingerprint, provider });
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// Takes the one certificate, from whoever proves to have its key.
#[derive(Debug)]
struct OnlyThis {
    fingerprint: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for OnlyThis {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        _above: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found: [u8; 32] = Sha256::digest(own).into();
        if found == self.fingerprint {
            return Ok(ServerCertVerified::assertion());
        }
        let digits: String = found.iter().map(|byte| format!("{byte:02x}")).collect();
        Err(rustls::Error::General(format!("it has another certificate, with the SHA-256 {digits}")))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
