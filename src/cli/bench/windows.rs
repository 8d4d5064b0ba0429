//! Windows of equal length under the same streams, and the streams' gaps in each of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::Context;
use futures_util::future::try_join_all;

use super::load::{PROMPT_ROWS, seeds};
use super::local::Local;
use super::publish::Plan;
use super::target::{Ask, Prompt, Target, Timed};

/// What happens in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Quiet,
    OverHttp,
    Steps,
    SelfTests,
    Stores,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Quiet,
        Self::OverHttp,
        Self::Steps,
        Self::SelfTests,
        Self::Stores,
    ];
}

/// A window that is over.
pub struct Window {
    pub kind: Kind,
    pub round: usize,
    pub from: Instant,
    pub to: Instant,
}

/// Runs `work` while the plan's streams stream, and gives their answers as well.
pub async fn under_load<T>(
    local: &Local,
    plan: Plan,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<(Vec<Timed>, T)> {
    let (ended, begun) = (AtomicBool::new(false), tokio::sync::Semaphore::new(0));
    let target = Target::Local(local.clone());
    let stream = || async {
        let mut answers: Vec<Timed> = Vec::new();
        while !ended.load(Ordering::Relaxed) {
            answers.push(target.ask(words(Local::NAME.into(), plan.tokens)).await?);
            begun.add_permits(1);
        }
        anyhow::Ok(answers)
    };
    let streams = try_join_all((0..plan.streams).map(|_| stream()));
    let watched = async {
        // Every stream's first answer warms up.
        let all = u32::try_from(plan.streams).context("too many streams")?;
        begun.acquire_many(all).await?.forget();
        let result = work.await;
        ended.store(true, Ordering::Relaxed);
        result
    };
    let (answers, result) = tokio::try_join!(streams, watched)?;
    Ok((answers.into_iter().flatten().collect(), result))
}

/// The streams' gaps, seconds, by the window that both ends lie in.
pub struct Gaps(Vec<(Kind, usize, Vec<f64>)>);

impl Gaps {
    /// `windows`: in the order of time.
    pub fn of(answers: &[Timed], windows: &[Window]) -> Self {
        let of = |window: &Window| (window.kind, window.round, Vec::new());
        let mut gaps: Vec<_> = windows.iter().map(of).collect();
        for pair in answers.iter().flat_map(|answer| answer.pieces.windows(2)) {
            let next = windows.partition_point(|window| window.from <= pair[0]);
            let Some(index) = next.checked_sub(1) else {
                continue;
            };
            if pair[1] <= windows[index].to {
                gaps[index].2.push((pair[1] - pair[0]).as_secs_f64());
            }
        }
        Self(gaps)
    }

    /// Of all rounds.
    pub fn of_kind(&self, kind: Kind) -> Vec<f64> {
        let of_it = self.0.iter().filter(|(of, _, _)| *of == kind);
        of_it.flat_map(|(_, _, gaps)| gaps).copied().collect()
    }

    /// Of one round.
    pub fn of_round(&self, kind: Kind, round: usize) -> Vec<f64> {
        let of_it = |(of, at, _): &&(Kind, usize, Vec<f64>)| *of == kind && *at == round;
        let found = self.0.iter().find(of_it);
        found.map_or_else(Vec::new, |(_, _, gaps)| gaps.clone())
    }
}

/// Words as a stream asks them.
pub fn words(model: String, tokens: usize) -> Ask {
    Ask {
        model,
        prompt: Prompt::Words {
            rows: PROMPT_ROWS,
            seed: seeds::take(1),
        },
        tokens,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_gap_counts_where_both_its_ends_lie_in_one_window() {
        let zero = Instant::now();
        let at = |ms| zero + Duration::from_millis(ms);
        let window = |kind, from, to| Window {
            kind,
            round: 0,
            from: at(from),
            to: at(to),
        };
        let windows = [window(Kind::Quiet, 10, 20), window(Kind::Stores, 30, 40)];
        let answer = Timed {
            begun: zero,
            pieces: [5, 11, 14, 25, 26, 31, 39, 45].map(at).to_vec(),
            tokens: 8,
            prompt_rows: 1,
        };
        let gaps = Gaps::of(&[answer], &windows);
        assert_eq!(gaps.of_kind(Kind::Quiet), [0.003]);
        assert_eq!(gaps.of_round(Kind::Stores, 0), [0.008]);
        assert_eq!(gaps.of_kind(Kind::OverHttp), [0.0; 0]);
    }
}
