//! `norma demo`: the main job in front of your eyes, with the embedded phantom base and adapters.
//!
//! In: nothing but this program. Out: a running server, and on the screen what it did: the same films asked
//! under several adapters at once, an adapter published while answers stream, the cost of mixing. Everything
//! goes through the same HTTP as a client's requests. Phantom films, not a diagnosis.

pub mod bundle;
mod client;
mod live;
mod side_by_side;
mod throughput;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use norma::base::{Base, OpenOptions};
use norma::http::inputs::InputFiles;
use norma::http::{Keys, Limits, Server, ServerOptions, Service, ServiceOptions, State};

use self::bundle::{Adapter, Bundle};
use self::client::Client;

/// Arguments of `norma demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// End after the show instead of staying up.
    #[arg(long)]
    once: bool,
    /// Where to listen; a free port if this one is taken.
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    listen: SocketAddr,
}

/// The name of the embedded base.
const BASE: &str = "phantom";

/// Runs the command.
pub fn run(args: &DemoArgs) -> anyhow::Result<()> {
    super::block_on("warn", demo(args))
}

#[expect(clippy::print_stdout, reason = "the output of a command")]
async fn demo(args: &DemoArgs) -> anyhow::Result<()> {
    let folder = tempfile::tempdir().context("no temporary folder")?;
    let bundle = Bundle::open()?;
    println!(
        "Norma demo: procedurally drawn phantom films, not a diagnosis, not a medical device.\n"
    );
    let begun = Instant::now();
    let server = start(&bundle, folder.path(), args.listen).await?;
    let client = Client::new(server.address())?;
    println!(
        "One frozen base in memory, serving at http://{} after {:.1} s.",
        server.address(),
        begun.elapsed().as_secs_f64()
    );
    println!(
        "\n1. Adapters, made by norma-train, published over HTTP (each one's self-test is replayed first)\n"
    );
    let (last, first) = bundle
        .adapters
        .split_last()
        .context("the bundle has no adapters")?;
    for adapter in first {
        publish(&client, adapter).await?;
    }
    side_by_side::run(&client, &bundle, first).await?;
    live::run(&client, &bundle, last).await?;
    throughput::run(&client, &bundle).await?;
    if !args.once {
        farewell(&server, &bundle, folder.path())?;
        tokio::signal::ctrl_c()
            .await
            .context("no signal can be awaited")?;
    }
    server.stop().await;
    Ok(())
}

/// Unpacks the base and serves it like any other folder.
async fn start(bundle: &Bundle, folder: &Path, listen: SocketAddr) -> anyhow::Result<Server> {
    let base_folder = folder.join("base");
    bundle::unpack_base(&base_folder)?;
    let state = Arc::new(State::new(Keys::none(), BASE)?);
    let options = ServerOptions {
        listen,
        drain_timeout: Duration::from_secs(10),
        ..ServerOptions::default()
    };
    let free = ServerOptions {
        listen: SocketAddr::new(listen.ip(), 0),
        ..options
    };
    let server = Server::bind(&state, options).or_else(|_| Server::bind(&state, free))?;
    let data_dir = folder.join("data");
    std::fs::create_dir_all(&data_dir).context("the data folder could not be made")?;
    let report_prompt = bundle.report_prompt.clone();
    let service = tokio::task::spawn_blocking(move || -> anyhow::Result<Service> {
        let base = Base::open(&base_folder, &OpenOptions::default())?;
        let options = ServiceOptions {
            name: BASE,
            data_dir: &data_dir,
            files: InputFiles {
                tokenizer: None,
                vision: None,
            },
            report_prompt: &report_prompt,
            weights: base.default_weights(),
            lora_folder: None,
            limits: Limits::default(),
        };
        Ok(Service::open(&base, &options)?)
    });
    state.install(Arc::new(service.await??));
    Ok(server)
}

#[expect(clippy::print_stdout, reason = "the output of a command")]
async fn publish(client: &Client, adapter: &Adapter) -> anyhow::Result<()> {
    let published = client.publish(adapter).await?;
    println!(
        "   {:<14} {:>3} sites, {:>5} values, {:>6} bytes, in {:>4.0} ms   {}",
        adapter.alias,
        published.sites,
        published.values,
        adapter.bytes.len(),
        published.took.as_secs_f64() * 1e3,
        adapter.about
    );
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the output of a command")]
fn farewell(server: &Server, bundle: &Bundle, folder: &Path) -> anyhow::Result<()> {
    let film = folder.join("film.png");
    let case = bundle.cases.first().context("the bundle has no films")?;
    std::fs::write(&film, bundle::film(&case.film)?).context("a film could not be written")?;
    let (address, film) = (server.address(), film.display());
    println!("\nThe server stays up at http://{address} until Ctrl-C. Try it:\n");
    println!("  curl -s http://{address}/v1/models");
    println!(
        "  curl -s http://{address}/v1/vqa -F image=@{film} -F model={} -F 'question={}'",
        case.alias, case.question
    );
    println!("  curl -s http://{address}/v1/report -F images=@{film} -F model={BASE}");
    println!("  curl -s http://{address}/v1/adapters");
    println!("  curl -s http://{address}/metrics | grep ^norma");
    Ok(())
}
