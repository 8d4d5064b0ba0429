//! The command line.
use norma_trainer::pretrain::*;
fn main() -> anyhow::Result<()> {
    let path = std::env::args().nth(1).unwrap();
    let recipe: PretrainRecipe = serde_json::from_slice(&std::fs::read(path)?)?;
    let start = std::time::Instant::now();
    pretrain(&recipe, |p| println!("{} {:.3} {p}", p.step, start.elapsed().as_secs_f64()))?;
    Ok(())
}
