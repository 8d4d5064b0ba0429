//! What `import`, `export`, `diff` and `average` do: read adapters, write adapters, print what is lost.

#![expect(clippy::print_stdout, reason = "the output of a command")]

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use norma::base::{Base, OpenOptions};
use norma::model::MedVlm;
use norma_adapters::manifest::Task;
use norma_adapters::{Adapter, Scope, SiteTable, format};
use norma_trainer::adapter::{self, Card};
use norma_trainer::interchange::average::{average, shares};
use norma_trainer::interchange::diff::{SiteDistance, diff};
use norma_trainer::interchange::peft;
use serde_json::{Value, json};

use crate::commands::{open, write};

/// Arguments of `import`.
#[derive(clap::Args)]
pub struct Import {
    /// The base's folder.
    #[arg(long)]
    base: PathBuf,
    /// The folder that PEFT saved: adapter_config.json and adapter_model.safetensors.
    #[arg(long)]
    peft: PathBuf,
    /// What the adapter is for: vqa, report, or other words.
    #[arg(long, default_value = "vqa")]
    task: String,
    /// Leave out tensors that belong to no norm of the base (PEFT's own choice for LLaVA also trains the
    /// projector, the embeddings and the head); the adapter then lacks what they learnt.
    #[arg(long)]
    drop_others: bool,
    /// The licence of the values.
    #[arg(long)]
    licence: Option<String>,
    /// The adapter file to write.
    #[arg(long)]
    out: PathBuf,
}

/// Arguments of `export`.
#[derive(clap::Args)]
pub struct Export {
    /// The base's folder.
    #[arg(long)]
    base: PathBuf,
    /// The adapter file.
    #[arg(long)]
    adapter: PathBuf,
    /// The base as PEFT's configuration names it: a hub's name or a folder. The base's folder by default.
    #[arg(long)]
    base_name: Option<String>,
    /// The folder to write.
    #[arg(long)]
    out: PathBuf,
}

/// Arguments of `diff`.
#[derive(clap::Args)]
pub struct Diff {
    /// The base's folder.
    #[arg(long)]
    base: PathBuf,
    /// The two adapter files.
    #[arg(num_args = 2, required = true, value_name = "ADAPTER")]
    adapters: Vec<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Arguments of `average`.
#[derive(clap::Args)]
pub struct Average {
    /// The base's folder.
    #[arg(long)]
    base: PathBuf,
    /// The adapter files, of one base and scope.
    #[arg(required = true, value_name = "ADAPTER")]
    adapters: Vec<PathBuf>,
    /// A weight for each, such as the number of examples that it learnt from; equal ones by default.
    #[arg(long, value_delimiter = ',')]
    weights: Option<Vec<f64>>,
    /// The adapter file to write.
    #[arg(long)]
    out: PathBuf,
}

/// Makes an adapter file of what PEFT saved.
pub fn import(arguments: &Import) -> Result<()> {
    let read = |name: &str| {
        let path = arguments.peft.join(name);
        std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let (config, tensors) = (read(peft::CONFIG_FILE)?, read(peft::TENSORS_FILE)?);
    let (base, around) = open(&arguments.base)?;
    let table = base.model.sites();
    let files = (&*config, &*tensors);
    let imported = peft::import(files, table, &base.row, arguments.drop_others)
        .with_context(|| format!("{} cannot be imported", arguments.peft.display()))?;
    println!("{} values, scope {}", imported.n_values, imported.scope);
    list(
        "norms that this base never uses, left out",
        &imported.unused,
    );
    list("tensors of no norm, left out", &imported.others);
    list(
        "not in the file, the base's values are kept",
        &imported.missing,
    );
    let card = Card {
        task: Task::from(arguments.task.clone()),
        scope: imported.scope,
        recipe: json!({ "import": "peft", "config": serde_json::from_slice::<Value>(&config)? }),
        data_digest: None,
        metrics: json!({}),
        licence: arguments.licence.clone(),
    };
    let bytes = adapter::write(&base, &around, imported.row, card)?;
    write(&arguments.out, &bytes)?;
    println!("{} ({} bytes)", arguments.out.display(), bytes.len());
    Ok(())
}

fn list(what: &str, names: &[String]) {
    if names.is_empty() {
        return;
    }
    println!("{what}: {}", names.len());
    for name in names {
        println!("  {name}");
    }
}

/// Writes the folder that PEFT loads an adapter from.
pub fn export(arguments: &Export) -> Result<()> {
    let base = Frozen::open(&arguments.base)?;
    let adapter = base.read(&arguments.adapter)?;
    let name = match &arguments.base_name {
        Some(name) => name.clone(),
        None => arguments.base.display().to_string(),
    };
    let exported = peft::export(&adapter.values.stored(&base.table), &name)?;
    std::fs::create_dir_all(&arguments.out)
        .with_context(|| format!("cannot make {}", arguments.out.display()))?;
    write(&arguments.out.join(peft::CONFIG_FILE), &exported.config)?;
    write(&arguments.out.join(peft::TENSORS_FILE), &exported.tensors)?;
    println!(
        "{}: {} sites, {} values",
        arguments.out.display(),
        adapter.n_sites,
        adapter.n_values
    );
    Ok(())
}

/// Prints how far two adapters lie from each other.
pub fn compare_two(arguments: &Diff) -> Result<()> {
    let base = Frozen::open(&arguments.base)?;
    let [one, other] = arguments.adapters.as_slice() else {
        unreachable!("two are required")
    };
    let (one, other) = (base.read(one)?, base.read(other)?);
    let rows = [one.values.row(), other.values.row()];
    let distances = diff(&base.table, &base.row, rows);
    if arguments.json {
        let generations = [one.generation.to_string(), other.generation.to_string()];
        let whole = json!({ "generations": generations, "sites": distances });
        println!("{}", serde_json::to_string_pretty(&whole)?);
        return Ok(());
    }
    for (adapter, path) in [&one, &other].into_iter().zip(&arguments.adapters) {
        let manifest = &adapter.manifest;
        println!("{}", path.display());
        println!("  generation {}", adapter.generation);
        println!("  task {}, scope {}", manifest.task, manifest.scope);
    }
    print_distances(&distances);
    Ok(())
}

fn print_distances(distances: &[SiteDistance]) {
    let width = distances
        .iter()
        .map(|one| one.site.len())
        .max()
        .unwrap_or(0);
    println!();
    println!(
        "{:width$}  {:>9}  {:>9}  {:>9}  {:>9}  {:>6}",
        "site", "rms", "largest", "first's", "second's", "cosine"
    );
    for one in distances {
        let cosine = one
            .cosine
            .map_or("-".into(), |cosine| format!("{cosine:.3}"));
        println!(
            "{:width$}  {:>9.6}  {:>9.6}  {:>9.6}  {:>9.6}  {cosine:>6}",
            one.site, one.rms, one.largest, one.moved[0], one.moved[1]
        );
    }
    println!();
    println!(
        "rms and largest: between the two; first's and second's: how far each lies from the base (rms)"
    );
}

/// Writes the weighted mean of adapters.
pub fn merge(arguments: &Average) -> Result<()> {
    let (base, around) = open(&arguments.base)?;
    let table = base.model.sites();
    let read = |path: &PathBuf| read(path, (table, &base.row, &base.digest));
    let adapters = arguments.adapters.iter().map(read);
    let adapters = adapters.collect::<Result<Vec<_>>>()?;
    let equal = vec![1.0; adapters.len()];
    let weights = arguments.weights.as_deref().unwrap_or(&equal);
    let shares = shares(weights, adapters.len())?;
    let scope = common_scope(&adapters, &arguments.adapters)?;
    let task = &adapters[0].manifest.task;
    let same_task = adapters.iter().all(|one| one.manifest.task == *task);
    ensure!(same_task, "the adapters are not for the same task");
    let rows: Vec<&[f32]> = adapters.iter().map(|one| one.values.row()).collect();
    let parts = adapters.iter().zip(&shares);
    let parts: Vec<Value> = parts
        .map(|(one, share)| json!({ "generation": one.generation.to_string(), "share": share }))
        .collect();
    let card = Card {
        task: task.clone(),
        scope,
        recipe: json!({ "average": parts }),
        data_digest: None,
        metrics: json!({}),
        licence: common_licence(&adapters),
    };
    let bytes = adapter::write(&base, &around, average(&rows, &shares), card)?;
    write(&arguments.out, &bytes)?;
    println!("{} ({} bytes)", arguments.out.display(), bytes.len());
    println!("no score is known of an average: measure it with `norma-train eval`");
    Ok(())
}

fn common_scope(adapters: &[Adapter], paths: &[PathBuf]) -> Result<Scope> {
    let scope = adapters[0].manifest.scope;
    for (adapter, path) in adapters.iter().zip(paths) {
        ensure!(
            adapter.manifest.scope == scope,
            "{} has scope `{}`, {} has `{scope}`: an average needs one scope",
            path.display(),
            adapter.manifest.scope,
            paths[0].display()
        );
    }
    Ok(scope)
}

/// The licence, if all have the same.
fn common_licence(adapters: &[Adapter]) -> Option<String> {
    let licence = adapters[0].manifest.licence.clone();
    let same = |one: &Adapter| one.manifest.licence == licence;
    adapters.iter().all(same).then_some(licence).flatten()
}

/// A base of which only the norms are read.
struct Frozen {
    table: SiteTable,
    row: Vec<f32>,
    digest: norma_adapters::Digest,
}

impl Frozen {
    fn open(folder: &Path) -> Result<Self> {
        let base = Base::open(folder, &OpenOptions::default())
            .with_context(|| format!("cannot open the base {}", folder.display()))?;
        Ok(Self {
            table: base.outline().sites.clone(),
            row: base.row()?,
            digest: base.digest(),
        })
    }

    fn read(&self, path: &Path) -> Result<Adapter> {
        read(path, (&self.table, &self.row, &self.digest))
    }
}

fn read(
    path: &Path,
    (table, row, digest): (&SiteTable, &[f32], &norma_adapters::Digest),
) -> Result<Adapter> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    format::read(&bytes, table, row, digest)
        .with_context(|| format!("{} does not fit the base", path.display()))
}
