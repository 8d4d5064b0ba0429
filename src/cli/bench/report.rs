//! All figures of a run, as one value that becomes JSON, and as tables for a person.

use std::fmt::Write as _;

use norma::base::{Base, WeightType};
use serde::Serialize;

use super::limits::Reached;
use super::load::LoadFigures;
use super::machine::Machine;
use super::mixed::Mixed;
use super::pairs::Compared;
use super::publish::Publishing;
use super::registered::Registered;
use super::resident::Resident;
use super::second::SecondQuestion;
use super::slots::BringingBack;
use super::stats::PairedRatio;

/// A run. What could not be measured is `None`, with its reason in `not_measured`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// This program's version.
    pub norma: &'static str,
    /// What was measured: a folder's name, `phantom`, or a URL.
    pub target: String,
    /// Parameters of the base and values of an adapter.
    pub base: Option<BaseFigures>,
    /// The machine's limits.
    pub machine: Option<Machine>,
    /// How near the base alone comes to them.
    pub reached: Option<Reached>,
    /// The base alone, by streams at once.
    pub streams: Vec<LoadFigures>,
    /// The most streams, by distinct adapters among them.
    pub adapters: Vec<LoadFigures>,
    /// Throughput of a load with distinct adapters over the same with the base alone.
    pub adapters_over_base: Option<Mixed>,
    /// The second question about an image.
    pub second_question: Option<SecondQuestion>,
    /// Adapters in the bank.
    pub resident: Vec<Resident>,
    /// Adapters in the registry.
    pub registered: Vec<Registered>,
    /// Bringing adapters back into the bank.
    pub bringing_back: Option<BringingBack>,
    /// Publishing while answers stream.
    pub publishing: Option<Publishing>,
    /// Reasons.
    pub not_measured: Vec<String>,
}

/// A base's size.
#[derive(Clone, Debug, Serialize)]
pub struct BaseFigures {
    /// Parameters.
    pub parameters: usize,
    /// What they are held as.
    pub weights: String,
    /// Bytes of them once loaded.
    pub weight_bytes: u64,
    /// Values of one adapter.
    pub adapter_values: usize,
    /// Rows of an image.
    pub image_rows: usize,
}

impl BaseFigures {
    /// Of an opened base whose weights are held as `weights`.
    pub fn of(base: &Base, weights: WeightType) -> Self {
        let parameters = base.outline().parameters.iter();
        Self {
            parameters: parameters
                .map(|(_, shape)| shape.iter().product::<usize>())
                .sum(),
            weights: weights.to_string(),
            weight_bytes: base.weight_bytes(weights),
            adapter_values: base.outline().sites.row_len(),
            image_rows: base.outline().shape.image_tokens,
        }
    }
}

impl Report {
    /// A report of `target` in which nothing stands yet.
    pub fn of(target: &str) -> Self {
        Self {
            norma: env!("CARGO_PKG_VERSION"),
            target: target.to_owned(),
            ..Self::default()
        }
    }

    /// The tables.
    pub fn text(&self) -> String {
        let mut text = String::new();
        self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) {
        line(out, &format!("Norma {} on {}", self.norma, self.target));
        if let Some(base) = &self.base {
            let (millions, megabytes) =
                (base.parameters as f64 / 1e6, base.weight_bytes as f64 / 1e6);
            line(
                out,
                &format!(
                    "base        {millions:.1} M parameters, {megabytes:.0} MB as {}, {} values an adapter, {} rows an image",
                    base.weights, base.adapter_values, base.image_rows
                ),
            );
        }
        if let Some(machine) = &self.machine {
            line(
                out,
                &format!(
                    "machine     {} threads read {:.1} GB/s and do {:.0} GFLOP/s",
                    machine.threads, machine.read_gb_per_second, machine.fma_gflop_per_second
                ),
            );
        }
        if let Some(reached) = &self.reached {
            line(
                out,
                &format!(
                    "decoding    {:.1} tokens/s of one stream, {:.0} % of the memory's limit",
                    reached.decode_tokens_per_second,
                    reached.decode_bandwidth_fraction * 100.0
                ),
            );
            line(
                out,
                &format!(
                    "prompts     {:.0} rows/s of a prompt of {}, {:.0} % of the processor's limit",
                    reached.prefill_rows_per_second,
                    reached.prefill_rows,
                    reached.prefill_fma_fraction * 100.0
                ),
            );
            line(
                out,
                &format!(
                    "steps       {:.1} % of a step of 16 streams is not the model's",
                    reached.outside_model_fraction * 100.0
                ),
            );
        }
        if let Some(second) = &self.second_question {
            line(
                out,
                &format!(
                    "an image    first token after {:.1} ms ({} rows), the second question's after {:.1} ms: {:.1} times shorter",
                    second.first_ms.p50,
                    second.prompt_rows,
                    second.second_ms.p50,
                    second.times_shorter
                ),
            );
        }
        loads(out, "The base alone", &self.streams);
        loads(out, "Distinct adapters", &self.adapters);
        if let Some(mixed) = &self.adapters_over_base {
            let what = format!(
                "\n{} streams of {} tokens, {} adapters over the base alone",
                mixed.streams, mixed.tokens, mixed.adapters
            );
            line(out, &format!("{what}: {}", compared(&mixed.compared)));
        }
        self.write_adapters(out);
        for reason in &self.not_measured {
            line(out, &format!("\nnot measured: {reason}"));
        }
    }

    fn write_adapters(&self, out: &mut String) {
        for resident in &self.resident {
            line(
                out,
                &format!(
                    "{} more resident adapters over none: {}; {:.2} bank rows of memory each, host copy included",
                    resident.adapters,
                    compared(&resident.compared),
                    resident.rows_per_adapter
                ),
            );
        }
        if !self.registered.is_empty() {
            line(
                out,
                "\nRegistered   open ms   list ms   look up alias us   record us",
            );
        }
        for r in &self.registered {
            line(
                out,
                &format!(
                    "{:>10} {:>9.2} {:>9.3} {:>18.2} {:>11.2}",
                    r.adapters, r.open_ms, r.list_page_ms, r.resolve_us, r.record_us
                ),
            );
        }
        if let Some(back) = &self.bringing_back {
            line(
                out,
                &format!(
                    "\nBringing an adapter back into its slot costs {:.0} us from memory, {:.0} us from disk (first token {:.2} ms when resident)",
                    back.fill_us, back.read_and_fill_us, back.resident_ms.p50
                ),
            );
        }
        let Some(p) = &self.publishing else { return };
        line(
            out,
            &format!(
                "\nPublishing while {} streams run, one every {} ms or so",
                p.plan.streams, p.plan.every_ms
            ),
        );
        for (name, spread) in [
            ("over HTTP", &p.over_http_ms),
            ("its steps", &p.steps_ms),
            ("  self-test", &p.self_test_ms),
            ("  syncs", &p.syncs_ms),
            ("  the rest", &p.rest_ms),
            ("first token after", &p.first_token_ms),
            ("streams' gaps, quiet", &p.quiet_inter_token_ms),
            ("streams' gaps", &p.busy_inter_token_ms),
        ] {
            line(
                out,
                &format!(
                    "  {name:<22} p50 {:>8.2} ms   p99 {:>8.2} ms",
                    spread.p50, spread.p99
                ),
            );
        }
        line(out, "  p99 of the gaps over that of quiet windows");
        for (name, p99) in [
            ("publishing over HTTP", &p.inter_token_p99),
            ("self-tests alone", &p.self_tests_inter_token_p99),
            ("stores alone", &p.stores_inter_token_p99),
        ] {
            line(out, &format!("    {name:<20} {}", ratio(p99)));
        }
    }
}

fn loads(out: &mut String, title: &str, loads: &[LoadFigures]) {
    if loads.is_empty() {
        return;
    }
    line(
        out,
        &format!(
            "\n{title:<18} streams  adapters   tokens/s   decoding   first token p50/p99 ms   gap p50/p99 ms"
        ),
    );
    for load in loads {
        let decode = load.decode_tokens_per_second;
        line(
            out,
            &format!(
                "{:>26} {:>9} {:>10.1} {:>10} {:>15.1} / {:<8.1} {:>8.2} / {:<8.2}",
                load.streams,
                load.adapters,
                load.tokens_per_second,
                decode.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}")),
                load.first_token_ms.p50,
                load.first_token_ms.p99,
                load.inter_token_ms.p50,
                load.inter_token_ms.p99
            ),
        );
    }
}

fn compared(compared: &Compared) -> String {
    let (whole, decoding) = (ratio(&compared.throughput), ratio(&compared.decoding));
    format!("{whole}; while all decode {decoding}")
}

fn ratio(ratio: &PairedRatio) -> String {
    let PairedRatio {
        ratio,
        low,
        high,
        pairs,
    } = ratio;
    format!("{ratio:.3} [{low:.3}, {high:.3}], 95 % over {pairs} pairs")
}

fn line(out: &mut String, text: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{text}");
}
