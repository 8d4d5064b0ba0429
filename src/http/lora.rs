//! `POST /v1/load_lora_adapter` and `/v1/unload_lora_adapter`: what controllers made for vLLM send.
//!
//! In: a name and a path. Out: an alias, by the same checks as an upload. A path is looked at only below the
//! folder that the operator allowed; without one there is nothing to load.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use actix_web::HttpResponse;
use actix_web::web::{Data, Payload, ReqData};
use norma_adapters::{Expected, IncomingFile};

use super::body;
use super::error::{ApiError, Kind, shorten};
use super::exchange::Exchange;
use super::fields::Fields;
use super::publish::{Publication, check_alias};
use super::service::{Service, blocking};
use super::state::State;
use super::upload::run_publish;

const MAX_BODY: usize = 64 << 10;

/// vLLM's word for what a controller did wrong.
fn invalid(param: &str, message: impl Into<String>) -> ApiError {
    ApiError::bad(param, message).with_code("InvalidUserInput")
}

/// Loads an adapter from below the allowed folder.
pub async fn load(
    state: Data<State>,
    exchange: ReqData<Arc<Exchange>>,
    payload: Payload,
) -> Result<HttpResponse, ApiError> {
    let (service, tenant) = (state.service()?, exchange.tenant());
    let mut fields = Fields::parse(&body::read(payload, MAX_BODY).await?)?;
    let name: String = fields.require("lora_name")?;
    let path: String = fields.require("lora_path")?;
    let replace = fields.take::<bool>("load_inplace")?.unwrap_or(false);
    // Names a base; there is one here.
    fields.take::<String>("base_model_name")?;
    fields.end()?;
    check_alias(&service, &name).map_err(|error| invalid("lora_name", error.message()))?;
    if !replace && service.registry().resolve(&tenant, &name).is_some() {
        let message = format!(
            "The lora adapter '{name}' has already been loaded. Set load_inplace to replace it."
        );
        return Err(invalid("lora_name", message));
    }
    let reader = Arc::clone(&service);
    let incoming = blocking(move || read(&reader, &path)).await?;
    let expected = if replace {
        Expected::Any
    } else {
        Expected::Absent
    };
    let publication = Publication {
        alias: Some(name.clone()),
        expected,
    };
    run_publish(&state, &service, &tenant, incoming, publication).await?;
    let text = format!("Success: LoRA adapter '{name}' added successfully.");
    Ok(HttpResponse::Ok()
        .content_type("text/plain; charset=utf-8")
        .body(text))
}

/// Removes an alias.
pub async fn unload(
    state: Data<State>,
    exchange: ReqData<Arc<Exchange>>,
    payload: Payload,
) -> Result<HttpResponse, ApiError> {
    let (service, tenant) = (state.service()?, exchange.tenant());
    let mut fields = Fields::parse(&body::read(payload, MAX_BODY).await?)?;
    let name: String = fields.require("lora_name")?;
    fields.take::<i64>("lora_int_id")?;
    fields.end()?;
    let text = format!(
        "Success: LoRA adapter '{}' removed successfully.",
        shorten(&name)
    );
    blocking(move || {
        service
            .registry()
            .delete_alias(&tenant, &name)?
            .ok_or_else(|| {
                let message = format!("The lora adapter '{}' cannot be found.", shorten(&name));
                ApiError::new(Kind::NotFound, message)
                    .with_param("lora_name")
                    .with_code("NotFoundError")
            })
    })
    .await?;
    Ok(HttpResponse::Ok()
        .content_type("text/plain; charset=utf-8")
        .body(text))
}

/// Copies the file into the store's keeping. Blocks.
fn read(service: &Service, path: &str) -> Result<IncomingFile, ApiError> {
    let Some(folder) = service.lora_folder() else {
        return Err(invalid(
            "lora_path",
            "this server loads no adapters by path",
        ));
    };
    let unreadable = || invalid("lora_path", "no adapter can be read there");
    let path = below(folder, path).ok_or_else(unreadable)?;
    let mut file = File::open(path).map_err(|_| unreadable())?;
    let mut incoming = service.registry().incoming()?;
    let mut piece = vec![0; 256 << 10];
    loop {
        let n = file.read(&mut piece).map_err(|_| unreadable())?;
        if n == 0 {
            return Ok(incoming);
        }
        incoming.append(&piece[..n])?;
    }
}

/// The file that a path means, if it lies below the folder once every link is followed. A folder means
/// the one safetensors file in it.
fn below(folder: &Path, path: &str) -> Option<PathBuf> {
    let folder = folder.canonicalize().ok()?;
    let mut found = folder.join(path).canonicalize().ok()?;
    if found.is_dir() {
        let mut files = std::fs::read_dir(&found)
            .ok()?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "safetensors")
            });
        found = files.next()?.canonicalize().ok()?;
        if files.next().is_some() {
            return None;
        }
    }
    (found.is_file() && found.starts_with(&folder)).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_below_the_folder_are_found_links_followed() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("allowed");
        std::fs::create_dir_all(folder.join("one")).unwrap();
        std::fs::create_dir_all(folder.join("two")).unwrap();
        for file in [
            "one/a.safetensors",
            "two/a.safetensors",
            "two/b.safetensors",
            "../secret",
        ] {
            std::fs::write(folder.join(file), b"x").unwrap();
        }
        std::os::unix::fs::symlink("../secret", folder.join("link")).unwrap();
        assert!(below(&folder, "one/a.safetensors").is_some());
        assert!(
            below(&folder, "one")
                .unwrap()
                .ends_with("one/a.safetensors")
        );
        for path in ["two", "../secret", "link", "/etc/passwd", "absent", ""] {
            assert!(below(&folder, path).is_none(), "{path}");
        }
    }
}
