//! The order in which a plan is measured, in this process or over HTTP.

use std::path::Path;

use anyhow::Context;
use norma::base::{Base, OpenOptions, device};

use super::load::{self, Load};
use super::local::{self, Local, Setup};
use super::machine::{self, Machine};
use super::plan::Plan;
use super::remote::Remote;
use super::report::{BaseFigures, Mixed, Report};
use super::target::Target;
use super::{BenchArgs, limits, publish, registered, resident, second, slots};
use crate::cli::demo::bundle;

fn machine_of(args: &BenchArgs, plan: &Plan) -> Machine {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    tokio::task::block_in_place(|| machine::measure(args.threads.unwrap_or(all), plan.machine()))
}

/// Measures a server from outside.
pub async fn over_http(args: &BenchArgs, url: &str, plan: &Plan) -> anyhow::Result<Report> {
    step("the machine");
    let machine = machine_of(args, plan);
    let remote = Remote::connect(url, args.key.clone()).await?;
    let aliases = remote.aliases().to_vec();
    let mut report = common(&Target::Remote(remote), plan, &aliases).await?;
    report.machine = machine;
    url.clone_into(&mut report.target);
    let inside = "the machine's fractions, resident and registered adapters, slots and publishing need \
                  the inside of an engine: run without --url";
    report.not_measured.push(inside.to_owned());
    Ok(report)
}

/// Measures an engine in this process.
pub async fn in_process(args: &BenchArgs, plan: &Plan) -> anyhow::Result<Report> {
    let folder = tempfile::tempdir().context("no temporary folder")?;
    step("the machine");
    let machine = machine_of(args, plan);
    step("loading");
    let (base, name) = open_base(args, folder.path())?;
    let weights = args.weights.unwrap_or_else(|| base.default_weights());
    let (slots, data_dir) = (plan.slots, local::data_dir(folder.path(), "main")?);
    let main = tokio::task::block_in_place(|| {
        Local::open(&Setup {
            base: &base,
            weights,
            data_dir: &data_dir,
            tokenizer: args.tokenizer.as_deref(),
            adapters: slots.registered,
            bank_slots: slots.slots as usize + 1,
            cached: slots.cached as usize,
        })
    })?;
    let target = Target::Local(main.clone());
    let aliases: Vec<String> = (0..slots.slots)
        .map(|seed| format!("bench-{seed}"))
        .collect();
    let mut reached = None;
    let on_cpu = args.device == "cpu";
    if on_cpu {
        step("one stream against the machine's limits");
        let runs = (plan.tokens, plan.repeats);
        reached = Some(limits::measure((&base, weights, &main), &machine, runs).await?);
    }
    let mut report = common(&target, plan, &aliases).await?;
    if !on_cpu {
        let device = &args.device;
        let fractions = format!("{device}'s own limits: the machine's figures are the CPU's");
        report.not_measured.push(fractions);
    }
    report.machine = machine;
    report.target = if on_cpu {
        name
    } else {
        format!("{name} on {}", args.device)
    };
    report.reached = reached;
    let parameters = base.outline().parameters.iter();
    report.base = Some(BaseFigures {
        parameters: parameters
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum(),
        weights: weights.to_string(),
        weight_bytes: base.weight_bytes(weights),
        adapter_values: base.outline().sites.row_len(),
        image_rows: base.outline().shape.image_tokens,
    });
    step("adapters brought back into the bank");
    report.bringing_back = Some(slots::measure(&main, slots, plan.repeats as u64 * 20).await?);
    let load = mixed_load(plan, &aliases);
    for &adapters in plan.resident {
        step("adapters resident in the bank");
        let pairs = (&load, plan.pairs);
        let place = (&base, weights, folder.path());
        match resident::measure(place, &main, adapters, pairs).await? {
            Ok(figures) => report.resident.push(figures),
            Err(reason) => report.not_measured.push(reason),
        }
    }
    step("adapters in the registry");
    let registry = local::data_dir(folder.path(), "registry")?;
    let counts = plan.registered;
    report.registered = tokio::task::block_in_place(|| registered::measure(&registry, counts))?;
    step("publishing");
    report.publishing = Some(publish::measure(&main, plan.publish).await?);
    Ok(report)
}

/// What can be measured of anybody.
async fn common(target: &Target, plan: &Plan, aliases: &[String]) -> anyhow::Result<Report> {
    step("two questions about an image");
    let second_question = second::measure(target, plan.images).await?;
    let base = vec![target.base().to_owned()];
    let mut report = Report {
        norma: env!("CARGO_PKG_VERSION"),
        target: String::new(),
        base: None,
        machine: Machine::default(),
        reached: None,
        streams: Vec::new(),
        adapters: Vec::new(),
        adapters_over_base: None,
        second_question,
        resident: Vec::new(),
        registered: Vec::new(),
        bringing_back: None,
        publishing: None,
        not_measured: Vec::new(),
    };
    step("streams at once");
    for &streams in plan.streams {
        let load = Load {
            streams,
            models: base.clone(),
            tokens: plan.tokens,
        };
        report
            .streams
            .push(load::measure(target, &load, plan.repeats).await?);
    }
    if aliases.is_empty() {
        let reason = "distinct adapters: the server lists none, see `norma bench adapters`";
        report.not_measured.push(reason.to_owned());
        return Ok(report);
    }
    step("distinct adapters");
    for &adapters in plan.streams.iter().filter(|count| **count <= aliases.len()) {
        let load = Load {
            streams: plan.streams.last().copied().unwrap_or(1),
            models: aliases[..adapters].to_vec(),
            tokens: plan.tokens,
        };
        report
            .adapters
            .push(load::measure(target, &load, plan.repeats).await?);
    }
    step("adapters beside the base alone");
    let mixed = mixed_load(plan, aliases);
    let alone = Load {
        models: base,
        ..mixed.clone()
    };
    report.adapters_over_base = Some(Mixed {
        streams: mixed.streams,
        adapters: mixed.models.len(),
        tokens: mixed.tokens,
        throughput: load::paired((target, &mixed), (target, &alone), plan.pairs).await?,
    });
    Ok(report)
}

/// Sixteen streams with as many adapters.
fn mixed_load(plan: &Plan, aliases: &[String]) -> Load {
    const STREAMS: usize = 16;
    Load {
        streams: STREAMS,
        models: aliases.iter().take(STREAMS).cloned().collect(),
        tokens: plan.tokens,
    }
}

fn open_base(args: &BenchArgs, folder: &Path) -> anyhow::Result<(Base, String)> {
    let (path, name) = if let Some(path) = &args.base {
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        (path.clone(), name.unwrap_or_else(|| "base".into()))
    } else {
        let path = folder.join("phantom");
        bundle::unpack_base(&path)?;
        (path, "phantom".into())
    };
    let options = OpenOptions {
        device: device::named(&args.device).with_context(|| format!("--device {}", args.device))?,
        ..OpenOptions::default()
    };
    let base = Base::open(&path, &options);
    Ok((base.context("the base cannot be used")?, name))
}

/// Says what begins, beside the output.
fn step(what: &str) {
    #[expect(clippy::print_stderr, reason = "progress of a command")]
    {
        eprintln!("... {what}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::{plan, plot};

    /// A command line of this command alone.
    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchArgs,
    }

    /// The places of a report where nothing stands.
    fn holes(path: &str, value: &serde_json::Value, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Null => found.push(path.to_owned()),
            serde_json::Value::Array(items) if items.is_empty() => found.push(path.to_owned()),
            serde_json::Value::Array(items) => {
                for item in items {
                    holes(path, item, found);
                }
            }
            serde_json::Value::Object(fields) => {
                for (name, field) in fields {
                    holes(&format!("{path}/{name}"), field, found);
                }
            }
            _ => {}
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_quick_run_on_the_embedded_base_has_every_figure() {
        let line = <Line as clap::Parser>::try_parse_from(["bench", "--quick"]).unwrap();
        let report = in_process(&line.args, &plan::QUICK).await.unwrap();
        let mut found = Vec::new();
        holes("", &serde_json::to_value(&report).unwrap(), &mut found);
        // On a machine that is busy elsewhere, the streams of a load may never all decode at once.
        found.retain(|path| !path.ends_with("/decode_tokens_per_second"));
        assert_eq!(found, ["/not_measured"], "{report:?}");
        assert_eq!(report.streams.len(), plan::QUICK.streams.len());
        assert!(
            report
                .streams
                .iter()
                .all(|load| load.tokens_per_second > 0.0)
        );
        let publishing = report.publishing.as_ref().unwrap();
        let published = plan::QUICK.publish.rounds * plan::QUICK.publish.publishes;
        assert_eq!(publishing.over_http_ms.samples, published);
        assert!(publishing.steps_ms.p50 >= publishing.self_test_ms.p50);
        let svg = plot::svg(&report);
        assert_eq!(svg.matches("<polyline").count(), 6, "{svg}");
        let text = report.text();
        assert!(text.contains("16 adapters over the base alone"), "{text}");
    }
}
