//! How much each tenant has had of the engine, so that the one who had least comes next.
//!
//! In: who has work, and rows computed for whom. Out: an order of tenants. After the virtual token counters
//! of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024): every row computed for a
//! tenant counts; one who comes back begins at the least count of those who have work, so that nobody
//! saves up a right to the whole machine.

use std::collections::HashMap;
use std::sync::Arc;

/// Rows computed by tenant.
#[derive(Debug, Default)]
pub struct Shares {
    tenants: HashMap<Arc<str>, Share>,
}

#[derive(Debug, Default)]
struct Share {
    rows: u64,
    /// Its sequences that wait or run.
    sequences: usize,
}

impl Shares {
    /// One more sequence of a tenant waits.
    pub fn join(&mut self, tenant: &Arc<str>) {
        let least = self.least();
        let share = self.tenants.entry(Arc::clone(tenant)).or_default();
        if share.sequences == 0 {
            share.rows = share.rows.max(least.unwrap_or(0));
        }
        share.sequences += 1;
    }

    /// One of them has ended. Tenants without any are forgotten once they would begin no lower than they
    /// stand.
    pub fn leave(&mut self, tenant: &Arc<str>) {
        if let Some(share) = self.tenants.get_mut(tenant) {
            share.sequences -= 1;
        }
        let least = self.least();
        self.tenants.retain(|_, share| {
            share.sequences > 0 || least.is_some_and(|least| share.rows > least)
        });
    }

    /// Rows are computed for a tenant.
    pub fn charge(&mut self, tenant: &Arc<str>, rows: usize) {
        if let Some(share) = self.tenants.get_mut(tenant) {
            share.rows += rows as u64;
        }
    }

    /// Rows that were charged need not be computed.
    pub fn refund(&mut self, tenant: &Arc<str>, rows: usize) {
        if let Some(share) = self.tenants.get_mut(tenant) {
            share.rows = share.rows.saturating_sub(rows as u64);
        }
    }

    /// Where a tenant stands; less comes first.
    pub fn rows(&self, tenant: &Arc<str>) -> u64 {
        self.tenants.get(tenant).map_or(0, |share| share.rows)
    }

    fn least(&self) -> Option<u64> {
        let active = self.tenants.values().filter(|share| share.sequences > 0);
        active.map(|share| share.rows).min()
    }
}

/// Divides `rows` evenly among demands: nobody gets more than it asks for, and what one leaves goes to
/// the others. Who asks for most gets what does not divide.
pub fn divide(rows: usize, demands: &[usize]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..demands.len()).collect();
    order.sort_by_key(|index| demands[*index]);
    let mut given = vec![0; demands.len()];
    let mut left = rows;
    for (n_before, index) in order.iter().enumerate() {
        let others = demands.len() - n_before;
        given[*index] = demands[*index].min(left / others);
        left -= given[*index];
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_divided_evenly_and_nothing_is_left_that_somebody_wants() {
        assert_eq!(divide(10, &[100, 2, 100]), [4, 2, 4]);
        assert_eq!(divide(11, &[100, 2, 100]), [4, 2, 5]);
        assert_eq!(divide(10, &[3, 4]), [3, 4]);
        assert_eq!(divide(1, &[5, 6]), [0, 1]);
        assert_eq!(divide(0, &[5]), [0]);
        assert!(divide(7, &[]).is_empty());
    }

    #[test]
    fn who_comes_back_neither_saves_up_nor_loses_what_he_owes() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut shares = Shares::default();
        shares.join(&a);
        shares.charge(&a, 100);
        shares.join(&b);
        assert_eq!(
            shares.rows(&b),
            100,
            "a newcomer begins with the least of those who have work"
        );
        shares.charge(&b, 50);
        shares.leave(&b);
        shares.join(&b);
        assert_eq!(
            shares.rows(&b),
            150,
            "leaving for a moment does not forgive"
        );
        shares.leave(&b);
        shares.charge(&a, 100);
        shares.leave(&a);
        assert!(
            shares.tenants.is_empty(),
            "nobody has work, nothing is remembered"
        );
    }
}
