//! What each operation of S3 does with a bucket; `s3s` reads requests, checks signatures and writes answers.
//!
//! ```text
//!  bucket   head · location · list (v1, v2) · list of the grant's own      made and removed by jobs only
//!  object   get (ranges, conditions) · head · put · copy · delete (one, many)
//!  upload   begin · part · part copied · list · complete · abort
//!  other    NotImplemented: versions, policies, tags, locks
//! ```
//! Bytes stream both ways; of a body no more than a chunk is in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use s3s::dto::{
    self, CommonPrefix, CompleteMultipartUploadInput, CompleteMultipartUploadOutput, CopyObjectInput, CopyObjectOutput,
    CopyObjectResult, CopyPartResult, CopySource, DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput,
    DeleteObjectsOutput, DeletedObject, ETag, ETagCondition, GetBucketLocationInput, GetBucketLocationOutput,
    GetBucketVersioningInput, GetBucketVersioningOutput, GetObjectInput, GetObjectOutput, HeadBucketInput,
    HeadBucketOutput, HeadObjectInput, HeadObjectOutput, ListBucketsInput, ListBucketsOutput,
    ListMultipartUploadsInput, ListMultipartUploadsOutput, ListObjectsInput, ListObjectsOutput, ListObjectsV2Input,
    ListObjectsV2Output, ListPartsInput, ListPartsOutput, MultipartUpload, Part, PutObjectInput, PutObjectOutput,
    StreamingBlob, Timestamp, UploadPartCopyInput, UploadPartCopyOutput, UploadPartInput, UploadPartOutput,
};
use s3s::{S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, TrailingHeaders, s3_error};

use super::bucket::{Bucket, BucketError, Headers, Object, PARTS_MAX, Piece};
use super::desk::{Caller, End, Event, Standing};
use super::listing::{Ask, Entry, Page, Pages};
use super::read::read;
use super::sums::Sums;

/// What is read of a body that is refused, so that its client hears why: a part of an upload as clients cut them (5 to 16 MiB), twice.
const SWALLOWED_BYTES_MAX: usize = 32 << 20;
/// Entries of a page, as S3 has it.
const PAGE_MAX: usize = 1000;
/// A body that brings nothing for so long is given up, with what it wrote: as the other servers do with peers that do not read.
const STALL: Duration = Duration::from_secs(120);

/// The operations.
pub(super) struct Operations;

/// Who asks, by which grant.
#[derive(Clone)]
pub(super) struct Asking {
    pub(super) caller: Caller,
    pub(super) grant: Arc<Standing>,
}

impl Asking {
    pub(super) fn tell(&self, verb: &'static str, name: &str, bytes: u64, began: Instant, end: End) {
        let (name, peer, seconds) = (name.to_owned(), self.caller.to_string(), began.elapsed().as_secs_f64());
        (self.grant.observer)(Event { verb, name, peer, bytes, seconds, end });
    }
}

impl From<BucketError> for S3Error {
    fn from(error: BucketError) -> Self {
        let code = match &error {
            // Not a status that clients take for a passing trouble: they would send it all again.
            BucketError::QuotaExceeded { .. }
            | BucketError::TooManyObjects { .. }
            | BucketError::TooManyPieces { .. }
            | BucketError::TooManyUploads { .. } => S3ErrorCode::Custom("QuotaExceeded".into()),
            BucketError::HeadersTooLong => S3ErrorCode::MetadataTooLarge,
            BucketError::NoSuchUpload(_) => S3ErrorCode::NoSuchUpload,
            BucketError::InvalidPart(_) => S3ErrorCode::InvalidPart,
            BucketError::PartsOutOfOrder => S3ErrorCode::InvalidPartOrder,
            BucketError::DiskFull => S3ErrorCode::Custom("StorageFull".into()),
            BucketError::Io(_) => S3ErrorCode::InternalError,
        };
        let status = match &error {
            BucketError::QuotaExceeded { .. }
            | BucketError::TooManyObjects { .. }
            | BucketError::TooManyPieces { .. }
            | BucketError::TooManyUploads { .. } => Some(hyper::StatusCode::FORBIDDEN),
            // RFC 4918, 11.5
            BucketError::DiskFull => Some(hyper::StatusCode::INSUFFICIENT_STORAGE),
            _ => None,
        };
        let mut answer = S3Error::with_message(code, error.to_string());
        if let Some(status) = status {
            answer.set_status_code(status);
        }
        answer
    }
}

/// The grant of a request.
fn asking<T>(request: &S3Request<T>) -> S3Result<Asking> {
    request.extensions.get::<Asking>().cloned().ok_or_else(|| s3_error!(AccessDenied))
}

/// The grant of a request, and its bucket.
fn bucket_of<T>(request: &S3Request<T>, name: &str) -> S3Result<(Asking, Bucket)> {
    let asking = asking(request)?;
    let bucket = bucket_among(&asking, name)?;
    Ok((asking, bucket))
}

fn bucket_among(asking: &Asking, name: &str) -> S3Result<Bucket> {
    let own = || Vec::from_iter(asking.grant.names()).join(", ");
    let bucket = asking.grant.bucket(name);
    bucket.ok_or_else(|| s3_error!(NoSuchBucket, "no bucket `{name}`; there are: {}", own()))
}

fn object_in(bucket: &Bucket, key: &str) -> S3Result<Object> {
    bucket.get(key).ok_or_else(|| s3_error!(NoSuchKey, "no object `{key}` in the bucket `{}`", bucket.name()))
}

fn time(seconds: u64) -> Timestamp {
    Timestamp::from(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

fn etag(text: &str) -> Option<ETag> {
    Some(ETag::Strong(text.to_owned()))
}

/// The bytes of a request, into the bucket; checked against what the client said of them, before and behind them.
async fn receive(
    asking: &Asking,
    bucket: &Bucket,
    body: Option<StreamingBlob>,
    sums: Sums,
    trailers: Option<TrailingHeaders>,
) -> S3Result<Arc<Piece>> {
    let mut hasher = sums.hasher(trailers.as_ref());
    let mut body = body.ok_or_else(|| s3_error!(IncompleteBody))?;
    let mut writing = bucket.write().await?;
    while let Some(chunk) = next(asking, &mut body).await? {
        hasher.update(&chunk);
        if let Err(error) = writing.push(&chunk).await {
            drop(writing);
            swallow(asking, &mut body).await;
            return Err(error.into());
        }
    }
    let piece = writing.finish().await?;
    sums.check(&piece, hasher, trailers)?;
    Ok(piece)
}

async fn next(asking: &Asking, body: &mut StreamingBlob) -> S3Result<Option<Bytes>> {
    let next = tokio::select! {
        next = tokio::time::timeout(STALL, body.next()) => next,
        () = asking.grant.over.cancelled() => return Err(s3_error!(AccessDenied, "the job is over")),
    };
    let next = next.map_err(|_| s3_error!(RequestTimeout, "no byte for {STALL:?}"))?;
    next.transpose().map_err(|error| match error.to_string() {
        text if text.contains("Mismatch") => s3_error!(BadDigest, "the bytes are not those that were signed: {text}"),
        text => s3_error!(IncompleteBody, "{text}"),
    })
}

/// Reads on for a while what is not kept: a client that is still sending hears no answer when its connection ends.
async fn swallow(asking: &Asking, body: &mut StreamingBlob) {
    let mut left = SWALLOWED_BYTES_MAX;
    while let Ok(Some(chunk)) = next(asking, body).await {
        left = left.saturating_sub(chunk.len());
        if left == 0 {
            return;
        }
    }
}

/// The bytes of an object, for as long as the grant stands; told when they are sent, or the client went away.
fn send(asking: Asking, name: String, object: &Object, range: std::ops::Range<u64>) -> StreamingBlob {
    let over = asking.grant.over.clone();
    let wanted = range.end - range.start;
    let mut told = Told { asking, name, bytes: 0, wanted, began: Instant::now() };
    let counted = read(object, range)
        .map(move |chunk: std::io::Result<Bytes>| chunk.inspect(|chunk| told.bytes += chunk.len() as u64));
    StreamingBlob::wrap(SyncStream::new(counted.take_until(over.cancelled_owned()).boxed()))
}

type Chunks = BoxStream<'static, std::io::Result<Bytes>>;

/// A stream that is only polled by its one owner may be shared: nobody can reach it through a shared reference.
struct SyncStream(std::sync::Mutex<Chunks>);

impl SyncStream {
    fn new(chunks: Chunks) -> Self {
        SyncStream(std::sync::Mutex::new(chunks))
    }
}

impl futures_util::Stream for SyncStream {
    type Item = std::io::Result<Bytes>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner).as_mut().poll_next(context)
    }
}

/// Tells of a read when it is over.
struct Told {
    asking: Asking,
    name: String,
    bytes: u64,
    wanted: u64,
    began: Instant,
}

impl Drop for Told {
    fn drop(&mut self) {
        let end = match self.bytes == self.wanted {
            true => End::Complete,
            false => End::Failed(format!("it broke off: {} bytes were asked for", self.wanted)),
        };
        self.asking.tell("GET", &self.name, self.bytes, self.began, end);
    }
}

/// Whether the conditions of a request hold, RFC 9110, 13.2.2.
fn hold(
    object: &Object,
    if_match: Option<&ETagCondition>,
    if_none_match: Option<&ETagCondition>,
    since: (Option<Timestamp>, Option<Timestamp>),
) -> S3Result<()> {
    let (if_modified, if_unmodified) = since;
    let is = |condition: &ETagCondition| match condition {
        ETagCondition::Any => true,
        ETagCondition::ETag(tag) => tag.value() == object.etag,
    };
    let modified = time(object.modified_s);
    let fails = match (if_match, if_unmodified) {
        (Some(condition), _) => !is(condition),
        (None, Some(when)) => modified > when,
        (None, None) => false,
    };
    if fails {
        return Err(s3_error!(PreconditionFailed));
    }
    let unchanged = match (if_none_match, if_modified) {
        (Some(condition), _) => is(condition),
        (None, Some(when)) => modified <= when,
        (None, None) => false,
    };
    if unchanged { Err(s3_error!(NotModified)) } else { Ok(()) }
}

macro_rules! headers_of {
    ($input:expr) => {{
        let mut http = BTreeMap::new();
        let kept = [
            ("cache-control", $input.cache_control.take()),
            ("content-disposition", $input.content_disposition.take()),
            ("content-encoding", $input.content_encoding.take()),
            ("content-language", $input.content_language.take()),
            ("content-type", $input.content_type.take()),
        ];
        http.extend(kept.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        // How a body was packed for the way is none of the object's (boto3 sends it with its trailers).
        if let Some(encoding) = http.get("content-encoding").map(|it: &String| without_chunks(it)) {
            match encoding {
                Some(encoding) => drop(http.insert("content-encoding".to_owned(), encoding)),
                None => drop(http.remove("content-encoding")),
            }
        }
        Headers { http, metadata: $input.metadata.take().unwrap_or_default().into_iter().collect() }
    }};
}

fn without_chunks(encoding: &str) -> Option<String> {
    let rest: Vec<_> =
        encoding.split(',').map(str::trim).filter(|word| *word != "aws-chunked" && !word.is_empty()).collect();
    (!rest.is_empty()).then(|| rest.join(","))
}

macro_rules! sums_of {
    ($input:expr) => {
        Sums::of(
            $input.content_md5.take(),
            [
                ("crc32", $input.checksum_crc32.take()),
                ("crc32c", $input.checksum_crc32c.take()),
                ("sha1", $input.checksum_sha1.take()),
                ("sha256", $input.checksum_sha256.take()),
                ("crc64nvme", $input.checksum_crc64nvme.take()),
            ],
        )
    };
}

/// An object's headers, as an answer has them.
macro_rules! described {
    ($object:expr, $output:ident { $($field:ident: $value:expr),* $(,)? }) => {{
        let header = |name: &str| $object.headers.http.get(name).cloned();
        $output {
            accept_ranges: Some("bytes".to_owned()),
            cache_control: header("cache-control"),
            content_disposition: header("content-disposition"),
            content_encoding: header("content-encoding"),
            content_language: header("content-language"),
            content_type: Some(header("content-type").unwrap_or_else(|| "application/octet-stream".to_owned())),
            e_tag: etag(&$object.etag),
            last_modified: Some(time($object.modified_s)),
            metadata: (!$object.headers.metadata.is_empty()).then(|| $object.headers.metadata.clone().into_iter().collect()),
            $($field: $value,)*
            ..$output::default()
        }
    }};
}

/// Puts a body under a name, and tells.
async fn put(
    asking: &Asking,
    bucket: &Bucket,
    key: &str,
    headers: Headers,
    received: impl Future<Output = S3Result<Arc<Piece>>>,
) -> S3Result<Object> {
    let (began, name) = (Instant::now(), format!("/{}/{key}", bucket.name()));
    let put = received.await.and_then(|piece| Ok(bucket.put(key, headers, piece)?));
    let (bytes, end) = match &put {
        Ok(object) => (object.size(), End::Complete),
        Err(error) => (0, End::Failed(error.message().unwrap_or(error.code().as_str()).to_owned())),
    };
    asking.tell("PUT", &name, bytes, began, end);
    put
}

/// The bytes of what a copy is made of, as a body.
fn source(asking: &Asking, source: &CopySource, range: Option<&str>) -> S3Result<(Object, StreamingBlob)> {
    let CopySource::Bucket { bucket, key, .. } = source else {
        return Err(s3_error!(NotImplemented, "only objects of this job's buckets are copied"));
    };
    let object = object_in(&bucket_among(asking, bucket)?, key)?;
    let range = match range {
        Some(text) => {
            let range = dto::Range::parse(text).map_err(|error| s3_error!(error, InvalidArgument))?;
            range.check(object.size()).map_err(|error| s3_error!(error, InvalidRange))?
        }
        None => 0..object.size(),
    };
    let bytes = send(asking.clone(), format!("/{bucket}/{key}"), &object, range);
    Ok((object, bytes))
}

fn number_of_part(number: i32) -> S3Result<i32> {
    if (1..=PARTS_MAX).contains(&number) {
        return Ok(number);
    }
    Err(s3_error!(InvalidArgument, "parts have the numbers 1 to {PARTS_MAX}, not {number}"))
}

/// A page of a bucket.
fn page_of(bucket: &Bucket, ask: Ask) -> Page<Object> {
    let first = ask.first().to_owned();
    let mut pages = Pages::new(ask);
    bucket.each_from(&first, |name, object| pages.show(name, || object.clone()));
    pages.page()
}

/// What a client takes of a page at most.
fn max_of(asked: Option<i32>) -> S3Result<usize> {
    match asked.map(usize::try_from) {
        None => Ok(PAGE_MAX),
        Some(Ok(max)) => Ok(max.min(PAGE_MAX)),
        Some(Err(_)) => Err(s3_error!(InvalidArgument, "`max-keys` is not negative")),
    }
}

/// A name in an answer: XML has no control characters, so clients ask for it like this.
fn encoded(name: &str, encoding: Option<&dto::EncodingType>) -> String {
    if encoding.is_none() {
        return name.to_owned();
    }
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => text.push(byte.into()),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

/// The objects and the common prefixes of a page.
fn told(page: Page<Object>, encoding: Option<&dto::EncodingType>) -> (Vec<dto::Object>, Vec<CommonPrefix>) {
    let (mut objects, mut prefixes) = (Vec::new(), Vec::new());
    for entry in page.entries {
        match entry {
            Entry::Prefix(prefix) => prefixes.push(CommonPrefix { prefix: Some(encoded(&prefix, encoding)) }),
            Entry::Object(key, object) => objects.push(dto::Object {
                key: Some(encoded(&key, encoding)),
                e_tag: etag(&object.etag),
                last_modified: Some(time(object.modified_s)),
                size: i64::try_from(object.size()).ok(),
                storage_class: Some(dto::ObjectStorageClass::from_static(dto::ObjectStorageClass::STANDARD)),
                ..dto::Object::default()
            }),
        }
    }
    (objects, prefixes)
}

#[async_trait]
impl S3 for Operations {
    async fn list_buckets(&self, request: S3Request<ListBucketsInput>) -> S3Result<S3Response<ListBucketsOutput>> {
        let asking = asking(&request)?;
        let row = |name: String| {
            let made = asking.grant.bucket(&name).map(|bucket| time(bucket.made_s()));
            dto::Bucket { name: Some(name), creation_date: made, ..dto::Bucket::default() }
        };
        let buckets = Some(asking.grant.names().into_iter().map(row).collect());
        let owner = Some(dto::Owner { id: Some("wharf".to_owned()), display_name: Some("wharf".to_owned()) });
        Ok(S3Response::new(ListBucketsOutput { buckets, owner, ..ListBucketsOutput::default() }))
    }

    async fn head_bucket(&self, request: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        bucket_of(&request, &request.input.bucket)?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn get_bucket_location(
        &self,
        request: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        bucket_of(&request, &request.input.bucket)?;
        Ok(S3Response::new(GetBucketLocationOutput::default()))
    }

    async fn get_bucket_versioning(
        &self,
        request: S3Request<GetBucketVersioningInput>,
    ) -> S3Result<S3Response<GetBucketVersioningOutput>> {
        bucket_of(&request, &request.input.bucket)?;
        Ok(S3Response::new(GetBucketVersioningOutput::default()))
    }

    async fn create_bucket(
        &self,
        request: S3Request<dto::CreateBucketInput>,
    ) -> S3Result<S3Response<dto::CreateBucketOutput>> {
        // Some clients make sure of their bucket like this.
        bucket_of(&request, &request.input.bucket)
            .map_err(|_| s3_error!(AccessDenied, "buckets are declared by the job: `deployment.start.storage.s3`"))?;
        Err(s3_error!(BucketAlreadyOwnedByYou))
    }

    async fn list_objects(&self, request: S3Request<ListObjectsInput>) -> S3Result<S3Response<ListObjectsOutput>> {
        let (_, bucket) = bucket_of(&request, &request.input.bucket)?;
        let ListObjectsInput { delimiter, encoding_type, marker, max_keys, prefix, .. } = request.input;
        let ask = Ask {
            prefix: prefix.clone().unwrap_or_default(),
            delimiter: delimiter.clone(),
            after: marker.clone().unwrap_or_default(),
            max: max_of(max_keys)?,
        };
        let max_keys = i32::try_from(ask.max).ok();
        let page = page_of(&bucket, ask);
        let next = page.next.as_ref().map(|next| encoded(next, encoding_type.as_ref()));
        let (contents, prefixes) = told(page, encoding_type.as_ref());
        Ok(S3Response::new(ListObjectsOutput {
            name: Some(bucket.name().to_owned()),
            prefix: prefix.map(|prefix| encoded(&prefix, encoding_type.as_ref())),
            marker: marker.map(|marker| encoded(&marker, encoding_type.as_ref())),
            max_keys,
            is_truncated: Some(next.is_some()),
            next_marker: next,
            contents: Some(contents),
            common_prefixes: Some(prefixes),
            delimiter: delimiter.map(|delimiter| encoded(&delimiter, encoding_type.as_ref())),
            encoding_type,
            ..ListObjectsOutput::default()
        }))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let (_, bucket) = bucket_of(&request, &request.input.bucket)?;
        let ListObjectsV2Input { continuation_token, delimiter, encoding_type, max_keys, prefix, start_after, .. } =
            request.input;
        let ask = Ask {
            prefix: prefix.clone().unwrap_or_default(),
            delimiter: delimiter.clone(),
            after: continuation_token.clone().or_else(|| start_after.clone()).unwrap_or_default(),
            max: max_of(max_keys)?,
        };
        let max_keys = i32::try_from(ask.max).ok();
        let page = page_of(&bucket, ask);
        let next = page.next.clone();
        let (contents, prefixes) = told(page, encoding_type.as_ref());
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(bucket.name().to_owned()),
            prefix: prefix.map(|prefix| encoded(&prefix, encoding_type.as_ref())),
            max_keys,
            key_count: i32::try_from(contents.len() + prefixes.len()).ok(),
            continuation_token,
            is_truncated: Some(next.is_some()),
            next_continuation_token: next,
            contents: Some(contents),
            common_prefixes: Some(prefixes),
            delimiter: delimiter.map(|delimiter| encoded(&delimiter, encoding_type.as_ref())),
            start_after: start_after.map(|start| encoded(&start, encoding_type.as_ref())),
            encoding_type,
            ..ListObjectsV2Output::default()
        }))
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let (asking, bucket) = bucket_of(&request, &request.input.bucket)?;
        let input = request.input;
        let object = object_in(&bucket, &input.key)?;
        let since = (input.if_modified_since, input.if_unmodified_since);
        hold(&object, input.if_match.as_ref(), input.if_none_match.as_ref(), since)?;
        let size = object.size();
        let (range, content_range) = match input.range {
            Some(range) => {
                let range = range.check(size).map_err(|error| s3_error!(error, InvalidRange))?;
                let told = format!("bytes {}-{}/{size}", range.start, range.end.saturating_sub(1));
                (range, Some(told))
            }
            None => (0..size, None),
        };
        let name = format!("/{}/{}", bucket.name(), input.key);
        let length = i64::try_from(range.end - range.start).ok();
        let body = Some(send(asking, name, &object, range));
        Ok(S3Response::new(described!(
            object,
            GetObjectOutput { body: body, content_length: length, content_range: content_range }
        )))
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let (_, bucket) = bucket_of(&request, &request.input.bucket)?;
        let input = request.input;
        let object = object_in(&bucket, &input.key)?;
        let since = (input.if_modified_since, input.if_unmodified_since);
        hold(&object, input.if_match.as_ref(), input.if_none_match.as_ref(), since)?;
        Ok(S3Response::new(described!(object, HeadObjectOutput { content_length: i64::try_from(object.size()).ok() })))
    }

    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let (asking, bucket) = bucket_of(&request, &request.input.bucket)?;
        let S3Request { mut input, trailing_headers, .. } = request;
        let headers = headers_of!(input);
        let there = bucket.get(&input.key);
        let names = |condition: &ETagCondition, object: &Object| match condition {
            ETagCondition::Any => true,
            ETagCondition::ETag(tag) => tag.value() == object.etag,
        };
        let clashes = input.if_none_match.as_ref().zip(there.as_ref()).is_some_and(|(tag, object)| names(tag, object));
        let lacks = input.if_match.as_ref().is_some_and(|tag| !there.as_ref().is_some_and(|object| names(tag, object)));
        if clashes || lacks {
            return Err(s3_error!(PreconditionFailed));
        }
        let sums = sums_of!(input);
        let received = receive(&asking, &bucket, input.body.take(), sums, trailing_headers);
        let object = put(&asking, &bucket, &input.key, headers, received).await?;
        Ok(S3Response::new(PutObjectOutput { e_tag: etag(&object.etag), ..PutObjectOutput::default() }))
    }

    async fn copy_object(&self, request: S3Request<CopyObjectInput>) -> S3Result<S3Response<CopyObjectOutput>> {
        let (asking, bucket) = bucket_of(&request, &request.input.bucket)?;
        let mut input = request.input;
        let (from, body) = source(&asking, &input.copy_source, None)?;
        let replaces =
            input.metadata_directive.as_ref().is_some_and(|it| it.as_str() == dto::MetadataDirective::REPLACE);
        let headers = if replaces { headers_of!(input) } else { from.headers.clone() };
        let received = receive(&asking, &bucket, Some(body), Sums::default(), None);
        let object = put(&asking, &bucket, &input.key, headers, received).await?;
        let copy_object_result = Some(CopyObjectResult {
            e_tag: etag(&object.etag),
            last_modified: Some(time(object.modified_s)),
            ..CopyObjectResult::default()
        });
        Ok(S3Response::new(CopyObjectOutput { copy_object_result, ..CopyObjectOutput::default() }))
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        let (asking, bucket) = bucket_of(&request, &request.input.bucket)?;
        let (began, key) = (Instant::now(), &request.input.key);
        bucket.delete(key)?;
        asking.tell("DELETE", &format!("/{}/{key}", bucket.name()), 0, began, End::Complete);
        Ok(S3Response::with_status(DeleteObjectOutput::default(), hyper::StatusCode::NO_CONTENT))
    }

    async fn delete_objects(
        &self,
        request: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let (asking, bucket) = bucket_of(&request, &request.input.bucket)?;
        let dto::Delete { objects, quiet } = request.input.delete;
        // As S3 has it.
        if objects.len() > PAGE_MAX {
            return Err(s3_error!(MalformedXML, "at most {PAGE_MAX} objects are deleted at once"));
        }
        let (mut deleted, mut errors) = (Vec::new(), Vec::new());
        for object in objects {
            let began = Instant::now();
            match bucket.delete(&object.key) {
                Ok(()) => {
                    asking.tell("DELETE", &format!("/{}/{}", bucket.name(), object.key), 0, began, End::Complete);
                    deleted.push(DeletedObject { key: Some(object.key), ..DeletedObject::default() });
                }
                Err(error) => errors.push(dto::Error {
                    key: Some(object.key),
                    message: Some(error.to_string()),
                    ..dto::Error::default()
                }),
            }
        }
        let deleted = (!quiet.unwrap_or(false)).then_some(deleted);
        let errors = (!errors.is_empty()).then_some(errors);
        Ok(S3Response::new(DeleteObjectsOutput { deleted, errors, ..DeleteObjectsOutput::default() }))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<dto::CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<dto::CreateMultipartUploadOutput>> {
        let (_, bucket) = bucket_of(&request, &request.input.bucket)?;
        let mut input = request.input;
        let headers = headers_of!(input);
        let upload_id = Some(bucket.begin_upload(&input.key, headers)?);
        let (bucket, key) = (Some(input.bucket), Some(input.key));
        Ok(S3Response::new(dto::CreateMultipartUploadOutput {
            bucket,
            key,
            upload_id,
            ..dto::CreateMultipartUploadOutput::default()
        }))
    }

    async fn upload_part(&self, request: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let (asking, bucket) = bucket_of(&request, &request.input.bucket)?;
        let S3Request { mut input, trailing_headers, .. } = request;
        let number = number_of_part(input.part_number)?;
        // A client that sends to nowhere hears it before its gigabytes.
        bucket.upload(&input.key, &input.upload_id)?;
        let sums = sums_of!(input);
        let piece = receive(&asking, &bucket, input.body.take(), sums, trailing_headers).await?;
        let e_tag = etag(&piece.md5);
        bucket.add_part(&input.key, &input.upload_id, number, piece)?;
        Ok(S3Response::new(UploadPartOutput { e_tag, ..UploadPartOutput::default() }))
    }

    async fn upload_part_copy(
        &self,
        request: S3Request<UploadPartCopyInput>,
    ) -> S3Result<S3Response<UploadPartCopyOutput>> {
        let (asking, bucket) = bucket_of(&request, &request.input.bucket)?;
        let input = request.input;
        let number = number_of_part(input.part_number)?;
        bucket.upload(&input.key, &input.upload_id)?;
        let (_, body) = source(&asking, &input.copy_source, input.copy_source_range.as_deref())?;
        let piece = receive(&asking, &bucket, Some(body), Sums::default(), None).await?;
        let copied = CopyPartResult { e_tag: etag(&piece.md5), ..CopyPartResult::default() };
        bucket.add_part(&input.key, &input.upload_id, number, piece)?;
        Ok(S3Response::new(UploadPartCopyOutput { copy_part_result: Some(copied), ..UploadPartCopyOutput::default() }))
    }

    async fn list_parts(&self, request: S3Request<ListPartsInput>) -> S3Result<S3Response<ListPartsOutput>> {
        let (_, bucket) = bucket_of(&request, &request.input.bucket)?;
        let input = request.input;
        let upload = bucket.upload(&input.key, &input.upload_id)?;
        let after = input.part_number_marker.unwrap_or(0);
        let max = max_of(input.max_parts)?;
        let mut parts: Vec<Part> = upload
            .parts
            .range(after.saturating_add(1)..)
            .take(max + 1)
            .map(|(number, piece)| Part {
                part_number: Some(*number),
                e_tag: etag(&piece.md5),
                size: i64::try_from(piece.size).ok(),
                last_modified: Some(time(upload.began_s)),
                ..Part::default()
            })
            .collect();
        let is_truncated = Some(parts.len() > max);
        parts.truncate(max);
        Ok(S3Response::new(ListPartsOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(input.upload_id),
            is_truncated,
            max_parts: i32::try_from(max).ok(),
            part_number_marker: input.part_number_marker,
            next_part_number_marker: parts.last().and_then(|part| part.part_number),
            parts: Some(parts),
            ..ListPartsOutput::default()
        }))
    }

    async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let (_, bucket) = bucket_of(&request, &request.input.bucket)?;
        // They are fewer than a page.
        let prefix = request.input.prefix.unwrap_or_default();
        let uploads = bucket.uploads().into_iter().filter(|(_, upload)| upload.key.starts_with(&prefix));
        let uploads = uploads.map(|(id, upload)| MultipartUpload {
            key: Some(upload.key),
            upload_id: Some(id),
            initiated: Some(time(upload.began_s)),
            ..MultipartUpload::default()
        });
        Ok(S3Response::new(ListMultipartUploadsOutput {
            bucket: Some(request.input.bucket),
            is_truncated: Some(false),
            uploads: Some(uploads.collect()),
            ..ListMultipartUploadsOutput::default()
        }))
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let (asking, bucket) = bucket_of(&request, &request.input.bucket)?;
        let (began, input) = (Instant::now(), request.input);
        let parts = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        if parts.is_empty() {
            return Err(s3_error!(MalformedXML, "name at least one part"));
        }
        let part = |part: dto::CompletedPart| {
            let number = part.part_number.ok_or_else(|| s3_error!(MalformedXML, "a part has no number"))?;
            Ok((number, part.e_tag.map(|tag| tag.value().to_owned())))
        };
        let parts: Vec<_> = parts.into_iter().map(part).collect::<S3Result<_>>()?;
        let object = bucket.complete_upload(&input.key, &input.upload_id, &parts)?;
        asking.tell("PUT", &format!("/{}/{}", bucket.name(), input.key), object.size(), began, End::Complete);
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: etag(&object.etag),
            ..CompleteMultipartUploadOutput::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<dto::AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<dto::AbortMultipartUploadOutput>> {
        let (_, bucket) = bucket_of(&request, &request.input.bucket)?;
        bucket.abort_upload(&request.input.key, &request.input.upload_id)?;
        Ok(S3Response::with_status(dto::AbortMultipartUploadOutput::default(), hyper::StatusCode::NO_CONTENT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_encoded_when_the_client_asks_for_it() {
        let url = dto::EncodingType::from_static(dto::EncodingType::URL);
        assert_eq!(encoded("a b/ü\u{1}", Some(&url)), "a%20b/%C3%BC%01");
        assert_eq!(encoded("a b", None), "a b");
    }

    #[test]
    fn how_a_body_was_packed_for_the_way_is_not_kept() {
        assert_eq!(without_chunks("aws-chunked"), None);
        assert_eq!(without_chunks("gzip,aws-chunked").as_deref(), Some("gzip"));
    }
}
