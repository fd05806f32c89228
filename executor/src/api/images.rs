//! The farm's own boot images, `{{ images_url }}/…` in jobs: fetched by the farm's cache like any other `url:`.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use axum::body::Body;
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio_util::io::ReaderStream;

use super::Api;
use super::error::ApiError;
use crate::virtual_dut::images::{self, Image, OtherKernel};

/// Bytes per read of a file: large enough that a kernel of 8 MiB costs a hundred reads.
const READ_BYTES: usize = 64 * 1024;

/// GET `/images/{name}`
pub(super) async fn image(
    State(api): State<Api>,
    UrlPath(name): UrlPath<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    image_of(name, api.farm.kernel_of_strangers(), headers).await
}

async fn image_of(name: String, other: Option<OtherKernel>, headers: HeaderMap) -> Result<Response, ApiError> {
    let wanted = name.clone();
    let found = tokio::task::spawn_blocking(move || images::find(&wanted, other.as_ref())).await;
    match found.map_err(|error| error.to_string()).and_then(|found| found) {
        Ok(Some(Image::Bytes(bytes))) => Ok(bytes.into_response()),
        Ok(Some(Image::File(path))) => file(&path, &headers).await,
        Ok(None) => Err(ApiError::NotFound(format!(
            "no image `{name}`; images: kernel, initramfs, tiny, tiny-arm64, registration-kernel, registration-initramfs"
        ))),
        Err(reason) => Err(ApiError::Internal(format!("cannot make the image `{name}`: {reason}"))),
    }
}

/// A file with its length, and a tag that changes with it: the cache asks again at every job, and downloads only what changed.
async fn file(path: &Path, headers: &HeaderMap) -> Result<Response, ApiError> {
    let refuse = |error: std::io::Error| ApiError::Internal(format!("cannot read {}: {error}", path.display()));
    let file = tokio::fs::File::open(path).await.map_err(refuse)?;
    let metadata = file.metadata().await.map_err(refuse)?;
    let tag = format!("\"{:x}-{:x}-{:x}\"", metadata.ino(), metadata.len(), metadata.mtime_nsec());
    if headers.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes()) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    let headers = [(header::CONTENT_LENGTH, metadata.len().to_string()), (header::ETAG, tag)];
    Ok((headers, Body::from_stream(ReaderStream::with_capacity(file, READ_BYTES))).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_sent_once_per_version_with_its_length() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kernel");
        std::fs::write(&path, b"kernel").unwrap();
        let first = file(&path, &HeaderMap::new()).await.unwrap();
        assert_eq!(first.headers()[header::CONTENT_LENGTH], "6");
        let mut known = HeaderMap::new();
        known.insert(header::IF_NONE_MATCH, first.headers()[header::ETAG].clone());
        assert_eq!(file(&path, &known).await.unwrap().status(), StatusCode::NOT_MODIFIED);
        assert_eq!(axum::body::to_bytes(first.into_body(), 100).await.unwrap(), "kernel");
    }

    #[tokio::test]
    async fn an_unknown_image_lists_the_known_ones() {
        let error = image_of("kernle".into(), None, HeaderMap::new()).await.unwrap_err();
        let ApiError::NotFound(text) = error else { panic!("{error:?}") };
        let known = "kernel, initramfs, tiny, tiny-arm64, registration-kernel, registration-initramfs";
        assert_eq!(text, format!("no image `kernle`; images: {known}"));
    }
}
