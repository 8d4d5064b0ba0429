//! Which handler answers which route. Who may use it is in [`super::access`].

use actix_web::web::{self, PathConfig, ServiceConfig};

use super::error::{ApiError, Kind};
use super::{adapters, chat, health, lora, models, tasks, upload};

/// Registers every handler.
pub fn configure(config: &mut ServiceConfig) {
    let path = PathConfig::default().error_handler(|_, _| {
        ApiError::new(Kind::NotFound, "the path holds no readable name").into()
    });
    config
        .app_data(path)
        .route("/health", web::get().to(health::live))
        .route("/health/live", web::get().to(health::live))
        .route("/health/ready", web::get().to(health::ready))
        .route("/version", web::get().to(health::version))
        .route("/metrics", web::get().to(health::metrics))
        .route("/v1/chat/completions", web::post().to(chat::completions))
        .route("/v1/vqa", web::post().to(tasks::vqa))
        .route("/v1/report", web::post().to(tasks::report))
        .route("/v1/models", web::get().to(models::list))
        .route("/v1/models/{id:.*}", web::get().to(models::get))
        .service(
            web::resource("/v1/adapters")
                .route(web::post().to(upload::upload))
                .route(web::get().to(adapters::list)),
        )
        .service(
            web::resource("/v1/adapters/{alias}")
                .route(web::get().to(adapters::get))
                .route(web::put().to(adapters::put))
                .route(web::delete().to(adapters::delete)),
        )
        .route(
            "/v1/adapters/{alias}/generations",
            web::get().to(adapters::generations),
        )
        .route(
            "/v1/adapters/{alias}/download",
            web::get().to(adapters::download),
        )
        .route("/v1/load_lora_adapter", web::post().to(lora::load))
        .route("/v1/unload_lora_adapter", web::post().to(lora::unload))
        .default_service(web::route().to(nothing_here));
}

/// The listener for metrics has this alone.
pub fn configure_metrics(config: &mut ServiceConfig) {
    config
        .route("/metrics", web::get().to(health::open_metrics))
        .default_service(web::route().to(nothing_here));
}

async fn nothing_here() -> Result<String, ApiError> {
    Err(ApiError::new(
        Kind::NotFound,
        "this server has no such path",
    ))
}
