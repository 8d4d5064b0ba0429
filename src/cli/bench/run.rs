//! The order in which a plan is measured, in this process or over HTTP.

use std::path::Path;

use anyhow::{Context, ensure};
use norma::base::{Base, OpenOptions, device};

use super::load::{self, Load};
use super::local::{self, Local, Setup};
use super::machine::{self, Machine};
use super::parts::{Part, Parts};
use super::plan::Plan;
use super::remote::Remote;
use super::report::{BaseFigures, Report};
use super::target::Target;
use super::{BenchArgs, limits, mixed, publish, registered, resident, second, slots};
use crate::cli::demo::bundle;

/// Measures a server from outside.
pub async fn over_http(args: &BenchArgs, url: &str, plan: &Plan) -> anyhow::Result<Report> {
    let parts = Parts::new(&args.only);
    let inside = parts.needing_the_inside();
    ensure!(
        inside.is_empty(),
        "{} can be measured in this process only: leave --url out",
        inside.join(", ")
    );
    let mut report = Report::of(url);
    if parts.wants(Part::Machine) {
        report.machine = Some(machine_of(args, plan));
    }
    let remote = Remote::connect(url, args.key.clone()).await?;
    let aliases = remote.aliases().to_vec();
    measure_from_outside(
        &Target::Remote(remote),
        (&parts, plan),
        &aliases,
        &mut report,
    )
    .await?;
    if !parts.are_chosen() {
        let inside = "the machine's fractions, resident and registered adapters, slots and \
                      publishing need the inside of an engine: run without --url";
        report.not_measured.push(inside.to_owned());
    }
    say_what_was_left_out(&parts, &mut report);
    Ok(report)
}

/// Measures an engine in this process.
pub async fn in_process(args: &BenchArgs, plan: &Plan) -> anyhow::Result<Report> {
    let parts = Parts::new(&args.only);
    let folder = tempfile::tempdir().context("no temporary folder")?;
    let mut machine = None;
    if parts.wants(Part::Machine) || parts.wants(Part::Reached) {
        machine = Some(machine_of(args, plan));
    }
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
    let on_cpu = args.device == "cpu";
    let mut report = Report::of(&if on_cpu {
        name
    } else {
        format!("{name} on {}", args.device)
    });
    report.machine = machine;
    report.base = Some(BaseFigures::of(&base, weights));
    if let Some(machine) = machine
        && parts.wants(Part::Reached)
    {
        if on_cpu {
            step("one stream against the machine's limits");
            let runs = (plan.tokens, plan.repeats);
            let place = (&base, weights, &main);
            report.reached = Some(limits::measure(place, &machine, runs).await?);
        } else {
            let device = &args.device;
            let fractions = format!("{device}'s own limits: the machine's figures are the CPU's");
            report.not_measured.push(fractions);
        }
    }
    measure_from_outside(&target, (&parts, plan), &aliases, &mut report).await?;
    if parts.wants(Part::BringingBack) {
        step("adapters brought back into the bank");
        let rounds = plan.repeats as u64 * 20;
        report.bringing_back = Some(slots::measure(&main, slots, rounds).await?);
    }
    if parts.wants(Part::Resident) {
        step("adapters resident in the bank");
        let place = (&base, weights, folder.path());
        let measured = resident::measure(place, plan.resident).await?;
        report.resident = measured.figures;
        report.not_measured.extend(measured.no_room);
    }
    if parts.wants(Part::Registered) {
        step("adapters in the registry");
        let registry = local::data_dir(folder.path(), "registry")?;
        let counts = plan.registered;
        report.registered = tokio::task::block_in_place(|| registered::measure(&registry, counts))?;
    }
    if parts.wants(Part::Publishing) {
        step("publishing");
        report.publishing = Some(publish::measure(&main, plan.publish).await?);
    }
    say_what_was_left_out(&parts, &mut report);
    Ok(report)
}

/// What can be measured of anybody.
async fn measure_from_outside(
    target: &Target,
    (parts, plan): (&Parts, &Plan),
    aliases: &[String],
    report: &mut Report,
) -> anyhow::Result<()> {
    if parts.wants(Part::SecondQuestion) {
        step("two questions about an image");
        report.second_question = Some(second::measure(target, plan.images).await?);
    }
    let base = vec![target.base().to_owned()];
    if parts.wants(Part::Streams) {
        step("streams at once");
        for &streams in plan.streams {
            let load = Load {
                streams,
                models: base.clone(),
                tokens: plan.tokens,
            };
            let figures = load::measure(target, &load, plan.repeats).await?;
            report.streams.push(figures);
        }
    }
    let (adapters, over_base) = (Part::Adapters, Part::AdaptersOverBase);
    if aliases.is_empty() && (parts.wants(adapters) || parts.wants(over_base)) {
        let reason = "distinct adapters: the server lists none, see `norma bench adapters`";
        report.not_measured.push(reason.to_owned());
        return Ok(());
    }
    if parts.wants(adapters) {
        step("distinct adapters");
        for &adapters in plan.streams.iter().filter(|count| **count <= aliases.len()) {
            let load = Load {
                streams: plan.streams.last().copied().unwrap_or(1),
                models: aliases[..adapters].to_vec(),
                tokens: plan.tokens,
            };
            let figures = load::measure(target, &load, plan.repeats).await?;
            report.adapters.push(figures);
        }
    }
    if parts.wants(over_base) {
        step("adapters beside the base alone");
        report.adapters_over_base = Some(mixed::measure(target, aliases, plan.pairs).await?);
    }
    Ok(())
}

fn machine_of(args: &BenchArgs, plan: &Plan) -> Machine {
    step("the machine");
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    tokio::task::block_in_place(|| machine::measure(args.threads.unwrap_or(all), plan.machine()))
}

fn say_what_was_left_out(parts: &Parts, report: &mut Report) {
    if parts.are_chosen() {
        let reason = "parts that --only does not name".to_owned();
        report.not_measured.push(reason);
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
        // Where no two runs can be compared, an interval is infinite, which JSON has no word for.
        let by_luck = ["/decode_tokens_per_second", "/decoding/", "_p99/"];
        found.retain(|path| !by_luck.iter().any(|part| path.contains(part)));
        assert_eq!(found, ["/not_measured"], "{report:?}");
        assert_eq!(report.streams.len(), plan::QUICK.streams.len());
        assert!(
            report
                .streams
                .iter()
                .all(|load| load.tokens_per_second > 0.0)
        );
        let publishing = report.publishing.as_ref().unwrap();
        assert!(publishing.over_http_ms.samples >= plan::QUICK.publish.rounds);
        assert!(publishing.steps_ms.p50 >= publishing.self_test_ms.p50);
        let rounds = plan::QUICK.publish.rounds;
        assert!(publishing.stores_inter_token_p99.pairs <= rounds);
        let resident = &report.resident[0].compared;
        assert_eq!(resident.throughput.pairs, plan::QUICK.resident.pairs.most);
        let svg = plot::svg(&report);
        assert_eq!(svg.matches("<polyline").count(), 6, "{svg}");
        let text = report.text();
        assert!(text.contains("16 adapters over the base alone"), "{text}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_chosen_part_is_measured_alone() {
        let line = ["bench", "--quick", "--only", "registered,second_question"];
        let line = <Line as clap::Parser>::try_parse_from(line).unwrap();
        let report = in_process(&line.args, &plan::QUICK).await.unwrap();
        assert_eq!(report.registered.len(), plan::QUICK.registered.len());
        assert!(report.second_question.is_some());
        assert!(report.machine.is_none() && report.streams.is_empty());
        assert!(report.publishing.is_none() && report.resident.is_empty());
        assert_eq!(report.not_measured.len(), 1);
        assert!(report.text().contains("Registered"), "{}", report.text());
    }

    #[tokio::test]
    async fn unknown_parts_and_parts_from_inside_of_a_server_are_refused() {
        let parse = |line: &[&str]| <Line as clap::Parser>::try_parse_from(line);
        let error = parse(&["bench", "--only", "speed"])
            .unwrap_err()
            .to_string();
        assert!(error.contains("'speed'"), "{error}");
        assert!(error.contains("adapters_over_base"), "{error}");
        let url = "http://127.0.0.1:1";
        let line = parse(&["bench", "--url", url, "--only", "resident,machine"]).unwrap();
        let error = over_http(&line.args, url, &plan::QUICK).await.unwrap_err();
        assert!(
            error.to_string().starts_with("resident can be measured"),
            "{error}"
        );
    }
}
