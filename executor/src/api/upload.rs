//! Bodies that strangers send: bounded each, bounded together, bounded in time.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::body::Body;
use axum::extract::multipart::{Field, Multipart, MultipartError};
use axum::extract::{FromRequest, Request};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::error::ApiError;

/// The longest job description; the parser's own budget is as large.
pub(super) const JOB_BYTES_MAX: usize = 256 * 1024;

/// The longest metadata: `-E '.*'` forwards a whole CI environment, some 100 KiB.
const METADATA_BYTES_MAX: usize = 1024 * 1024;

/// One whole submission, attachments included. They stay in memory for as long as the job lives; what is larger belongs on a web
/// server, as `url:`.
const SUBMISSION_BYTES_MAX: usize = 64 * 1024 * 1024;

/// All uploads being read at the same time, in MiB: eight of the largest.
const UPLOADS_MIB_MAX: usize = 512;

/// Parts of one submission: metadata, job, bucket, and more attachments than anybody has used.
const PARTS_MAX: usize = 256;

/// The largest submission over a line of 2 Mbit/s.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(300);

static UPLOADS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(UPLOADS_MIB_MAX)));

/// The parts of a CI-tron submission.
#[derive(Debug, Default)]
pub(super) struct Parts {
    pub(super) metadata: Option<Bytes>,
    pub(super) job: Option<Bytes>,
    pub(super) bucket: Option<Bytes>,
    pub(super) attachments: BTreeMap<String, Bytes>,
}

/// Reads a multipart body. Only file parts count, as in CI-tron: a part without a file name is a form field, and skipped.
pub(super) async fn read_parts(request: Request) -> Result<Parts, ApiError> {
    let multipart = Multipart::from_request(request, &())
        .await
        .map_err(|rejection| ApiError::Malformed(format!("this is no multipart body: {rejection}")))?;
    in_time(collect(multipart, Budget::default())).await
}

/// Reads a job description sent as the body itself.
pub(super) async fn read_job(body: Body) -> Result<String, ApiError> {
    let read = async {
        let mut budget = Budget::default();
        let mut text = BytesMut::new();
        let mut chunks = body.into_data_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| ApiError::Malformed(format!("the body broke off: {error}")))?;
            budget.take(chunk.len())?;
            append(&mut text, &chunk, "the job description", JOB_BYTES_MAX)?;
        }
        text_of(&text.freeze())
    };
    in_time(read).await
}

/// A job description's text.
pub(super) fn text_of(bytes: &Bytes) -> Result<String, ApiError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => Err(ApiError::Malformed(format!(
            "the job description is not UTF-8 at byte {}; save it as UTF-8",
            error.valid_up_to()
        ))),
    }
}

async fn in_time<T>(read: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
    let late = || ApiError::Malformed(format!("the body did not arrive within {UPLOAD_TIMEOUT:?}"));
    timeout(UPLOAD_TIMEOUT, read).await.map_err(|_| late())?
}

async fn collect(mut multipart: Multipart, mut budget: Budget) -> Result<Parts, ApiError> {
    let mut parts = Parts::default();
    let mut count = 0;
    while let Some(field) = multipart.next_field().await.map_err(broken)? {
        count += 1;
        if count > PARTS_MAX {
            return Err(ApiError::TooLarge(format!("more than {PARTS_MAX} parts; pack the attachments together")));
        }
        let is_file = field.file_name().is_some();
        let name = field.name().unwrap_or_default().to_owned();
        let bytes_max = match name.as_str() {
            "metadata" => METADATA_BYTES_MAX,
            "job" => JOB_BYTES_MAX,
            _ => SUBMISSION_BYTES_MAX,
        };
        let bytes = read_part(field, &name, bytes_max, &mut budget).await?;
        match name.as_str() {
            _ if !is_file => {}
            "metadata" => parts.metadata = Some(bytes),
            "job" => parts.job = Some(bytes),
            "job_bucket_initial_state_tarball_file" => parts.bucket = Some(bytes),
            _ => drop(parts.attachments.insert(name, bytes)),
        }
    }
    Ok(parts)
}

async fn read_part(mut field: Field<'_>, name: &str, bytes_max: usize, budget: &mut Budget) -> Result<Bytes, ApiError> {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = field.chunk().await.map_err(broken)? {
        budget.take(chunk.len())?;
        append(&mut bytes, &chunk, &format!("the part {name:?}"), bytes_max)?;
    }
    Ok(bytes.freeze())
}

fn append(bytes: &mut BytesMut, chunk: &[u8], what: &str, bytes_max: usize) -> Result<(), ApiError> {
    if bytes.len() + chunk.len() > bytes_max {
        return Err(ApiError::TooLarge(format!("{what} has more than {bytes_max} bytes")));
    }
    bytes.extend_from_slice(chunk);
    Ok(())
}

fn broken(error: MultipartError) -> ApiError {
    ApiError::Malformed(format!("the multipart body is broken: {}", error.body_text()))
}

/// What one submission has used of its own limit and of the memory for all.
#[derive(Default)]
struct Budget {
    bytes: usize,
    permits: Vec<OwnedSemaphorePermit>,
}

impl Budget {
    fn take(&mut self, length: usize) -> Result<(), ApiError> {
        self.bytes += length;
        if self.bytes > SUBMISSION_BYTES_MAX {
            let text = format!(
                "a submission has at most {SUBMISSION_BYTES_MAX} bytes; put large files on a web server, as `url:`"
            );
            return Err(ApiError::TooLarge(text));
        }
        while self.permits.len() * 1024 * 1024 < self.bytes {
            let permit = Arc::clone(&UPLOADS).try_acquire_owned();
            self.permits.push(
                permit.map_err(|_| ApiError::Unavailable("too many uploads at once; try again in a minute".into()))?,
            );
        }
        Ok(())
    }
}

/// What is in a job bucket's tarball.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Tarball {
    /// Directories at most.
    Empty,
    /// That many members that are not directories.
    Files(usize),
}

/// Looks through an uncompressed tar file (POSIX.1-1988 ustar and its GNU and pax children): headers with right checksums, and two
/// empty blocks at the end.
pub(super) fn inspect_tarball(bytes: &[u8]) -> Result<Tarball, ApiError> {
    let mut files = 0;
    let mut rest = bytes;
    loop {
        let (header, after) = rest.split_first_chunk::<512>().ok_or(ApiError::InvalidTarball)?;
        if header.iter().all(|byte| *byte == 0) {
            return Ok(if files == 0 { Tarball::Empty } else { Tarball::Files(files) });
        }
        let size = member_size(header).ok_or(ApiError::InvalidTarball)?;
        // `5` is a directory, `x` and `g` are pax headers, `L` and `K` GNU's long names.
        files += usize::from(!b"5xgLK".contains(&header[156]));
        let blocks = size.div_ceil(512).checked_mul(512).ok_or(ApiError::InvalidTarball)?;
        rest = after.get(blocks..).ok_or(ApiError::InvalidTarball)?;
    }
}

fn member_size(header: &[u8; 512]) -> Option<usize> {
    // The checksum is taken with its own field read as eight spaces.
    let sum: u64 =
        header.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u64::from(*byte) }).sum();
    if octal(&header[148..156])? != sum {
        return None;
    }
    // Hard and symbolic links, devices and directories have no body, whatever their size field says.
    if b"123456".contains(&header[156]) { Some(0) } else { usize::try_from(octal(&header[124..136])?).ok() }
}

fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?;
    u64::from_str_radix(text.trim_matches(['\0', ' ']), 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn parts_of(body: &'static str) -> Result<Parts, ApiError> {
        let request = Request::post("/").header("content-type", "multipart/form-data; boundary=cut");
        read_parts(request.body(Body::from(body)).unwrap()).await
    }

    #[tokio::test]
    async fn a_part_without_a_file_name_is_not_a_part() {
        let body = "--cut\r\ncontent-disposition: form-data; name=\"metadata\"\r\n\r\n{}\r\n--cut--\r\n";
        assert_eq!(parts_of(body).await.unwrap().metadata, None);
    }

    #[tokio::test]
    async fn the_parts_of_a_submission_are_told_apart_by_name() {
        let body = "--cut\r\ncontent-disposition: form-data; name=\"metadata\"; filename=\"metadata\"\r\n\r\n{}\r\n\
                    --cut\r\ncontent-disposition: form-data; name=\"job\"; filename=\"job\"\r\n\r\nversion: 1\n\r\n\
                    --cut\r\ncontent-disposition: form-data; name=\"job_bucket_initial_state_tarball_file\"; filename=\"b\"\r\n\r\nxx\r\n\
                    --cut\r\ncontent-disposition: form-data; name=\"initrd\"; filename=\"initrd\"\r\n\r\nbytes\r\n--cut--\r\n";
        let parts = parts_of(body).await.unwrap();
        assert_eq!(parts.metadata.unwrap(), "{}");
        assert_eq!(parts.job.unwrap(), "version: 1\n");
        assert_eq!(parts.bucket.unwrap(), "xx");
        assert_eq!(parts.attachments, BTreeMap::from([("initrd".to_owned(), Bytes::from("bytes"))]));
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_refused() {
        let body = "--cut\r\ncontent-disposition: form-data; name=\"job\"; filename=\"job\"\r\n\r\nversion";
        assert!(matches!(parts_of(body).await, Err(ApiError::Malformed(_))));
    }

    #[tokio::test]
    async fn a_job_of_more_than_256_kib_is_refused() {
        let error = read_job(Body::from(vec![b'#'; JOB_BYTES_MAX + 1])).await.unwrap_err();
        assert!(matches!(error, ApiError::TooLarge(text) if text == "the job description has more than 262144 bytes"));
        assert_eq!(read_job(Body::from(vec![b'#'; JOB_BYTES_MAX])).await.unwrap().len(), JOB_BYTES_MAX);
    }

    fn member(kind: u8, size: usize) -> Vec<u8> {
        let mut header = [0; 512];
        header[..4].copy_from_slice(b"name");
        header[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        header[148..156].copy_from_slice(b"        ");
        header[156] = kind;
        let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        let mut bytes = header.to_vec();
        bytes.resize(512 + size.div_ceil(512) * 512, b'x');
        bytes
    }

    #[test]
    fn a_tarball_is_known_by_its_checksums_and_its_end() {
        let end = vec![0; 1024];
        assert_eq!(inspect_tarball(&end).unwrap(), Tarball::Empty);
        assert_eq!(inspect_tarball(&[member(b'5', 0), end.clone()].concat()).unwrap(), Tarball::Empty);
        assert_eq!(
            inspect_tarball(&[member(b'5', 0), member(b'0', 700), end.clone()].concat()).unwrap(),
            Tarball::Files(1)
        );
        let mut wrong = [member(b'0', 700), end].concat();
        wrong[0] ^= 1;
        for broken in [&b""[..], b"not a tar", &wrong, &member(b'0', 700)[..600], &member(b'0', 700)] {
            assert!(matches!(inspect_tarball(broken), Err(ApiError::InvalidTarball)));
        }
    }
}
