//! Which generation lies in which slot of the bank, and who is using it.
//!
//! In: sequences that take a generation and give its slot back. Out: a slot to read, a slot to
//! fill first, or word that all are in use. Knows no values and no tensor; the bank's owner fills
//! the slots. One owner, no locks.

use std::collections::HashMap;

use crate::digest::Generation;

/// The slot that always holds the base's own values.
pub const BASE_SLOT: usize = 0;

/// What [`SlotTable::acquire`] found. The slot in it is held until it is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acquire {
    /// The slot holds the generation.
    Resident(usize),
    /// The slot is the generation's from now on; its owner writes the row before anything reads
    /// it, or calls [`SlotTable::forget`] where it cannot.
    Fill(usize),
    /// Every slot is in use by another generation.
    Full,
}

#[derive(Clone, Debug, Default)]
struct Slot {
    /// What the slot holds, unless it is free or its fill has failed.
    generation: Option<Generation>,
    users: usize,
    /// When its last user left, on the table's own count.
    released_at: u64,
}

/// The bank's bookkeeping. Slot 0 is the base: it is never given out, never filled, never counted.
///
/// A slot that somebody uses stays with its generation until the last user has released it. An
/// unused one keeps its generation until its place is needed; the one unused longest goes first.
#[derive(Clone, Debug)]
pub struct SlotTable {
    slots: Vec<Slot>,
    by_generation: HashMap<Generation, usize>,
    /// Slots with one user or more.
    in_use: usize,
    releases: u64,
}

impl SlotTable {
    /// A table for a bank of `n_slots` rows, the base's row among them.
    pub fn new(n_slots: usize) -> Self {
        Self {
            slots: vec![Slot::default(); n_slots.max(1)],
            by_generation: HashMap::new(),
            in_use: 0,
            releases: 0,
        }
    }

    /// Takes a slot for one user of this generation.
    pub fn acquire(&mut self, generation: &Generation) -> Acquire {
        if let Some(&slot) = self.by_generation.get(generation) {
            let users = &mut self.slots[slot].users;
            self.in_use += usize::from(*users == 0);
            *users += 1;
            return Acquire::Resident(slot);
        }
        let unused = self.slots.iter().enumerate().skip(BASE_SLOT + 1);
        let oldest = unused
            .filter(|(_, slot)| slot.users == 0)
            .min_by_key(|(_, slot)| (slot.generation.is_some(), slot.released_at));
        let Some((slot, _)) = oldest else {
            return Acquire::Full;
        };
        let held = &mut self.slots[slot];
        if let Some(evicted) = held.generation.replace(*generation) {
            self.by_generation.remove(&evicted);
        }
        held.users = 1;
        self.in_use += 1;
        self.by_generation.insert(*generation, slot);
        Acquire::Fill(slot)
    }

    /// Gives back one use of a slot. The base's slot may be given back any number of times.
    ///
    /// # Panics
    /// When nobody uses the slot: the count would be wrong, and with it what may be rewritten.
    pub fn release(&mut self, slot: usize) {
        if slot == BASE_SLOT {
            return;
        }
        self.releases += 1;
        let held = &mut self.slots[slot];
        assert!(
            held.users > 0,
            "slot {slot} is released by nobody who holds it"
        );
        held.users -= 1;
        self.in_use -= usize::from(held.users == 0);
        held.released_at = self.releases;
    }

    /// Gives back the use that [`Acquire::Fill`] began, because the fill failed: the slot holds no
    /// generation any more. Others who took it meanwhile must release it; nobody new gets it until
    /// they have.
    ///
    /// # Panics
    /// When nobody uses the slot.
    pub fn forget(&mut self, slot: usize) {
        if let Some(generation) = self.slots[slot].generation.take() {
            self.by_generation.remove(&generation);
        }
        self.release(slot);
    }

    /// Forgets every generation that nobody uses; the slots that held them, which are free now.
    pub fn forget_unused(&mut self) -> Vec<usize> {
        let mut forgotten = Vec::new();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if slot.users == 0
                && let Some(generation) = slot.generation.take()
            {
                self.by_generation.remove(&generation);
                forgotten.push(index);
            }
        }
        forgotten
    }

    /// Slots that can hold an adapter: all but the base's.
    pub fn capacity(&self) -> usize {
        self.slots.len() - 1
    }

    /// Slots with one user or more.
    pub fn in_use(&self) -> usize {
        self.in_use
    }

    /// Slots that hold a generation, used or not.
    pub fn resident(&self) -> usize {
        self.by_generation.len()
    }

    /// The generation in a slot; none in the base's slot, a free one, or one whose fill failed.
    pub fn generation(&self, slot: usize) -> Option<&Generation> {
        self.slots.get(slot)?.generation.as_ref()
    }

    /// Whether an acquire of this generation would find it resident.
    pub fn is_resident(&self, generation: &Generation) -> bool {
        self.by_generation.contains_key(generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn generation(id: u8) -> Generation {
        Generation::of(&[id])
    }

    #[test]
    fn a_generation_is_filled_once_and_shared() {
        let mut table = SlotTable::new(3);
        assert_eq!(table.acquire(&generation(1)), Acquire::Fill(1));
        assert_eq!(table.acquire(&generation(1)), Acquire::Resident(1));
        assert_eq!(table.acquire(&generation(2)), Acquire::Fill(2));
        assert_eq!(table.acquire(&generation(3)), Acquire::Full);
        assert_eq!(
            (table.in_use(), table.resident(), table.capacity()),
            (2, 2, 2)
        );
        table.release(1);
        assert_eq!(table.acquire(&generation(3)), Acquire::Full);
        table.release(1);
        assert_eq!((table.in_use(), table.resident()), (1, 2));
        assert_eq!(table.acquire(&generation(3)), Acquire::Fill(1));
        assert_eq!(table.generation(1), Some(&generation(3)));
        assert!(!table.is_resident(&generation(1)));
    }

    #[test]
    fn the_one_unused_longest_goes_first_and_free_slots_before_it() {
        let mut table = SlotTable::new(4);
        for id in 1..=2 {
            table.acquire(&generation(id));
            table.release(usize::from(id));
        }
        assert_eq!(table.acquire(&generation(1)), Acquire::Resident(1));
        table.release(1);
        assert_eq!(table.acquire(&generation(3)), Acquire::Fill(3));
        assert_eq!(table.acquire(&generation(4)), Acquire::Fill(2));
        assert_eq!(table.acquire(&generation(5)), Acquire::Fill(1));
        assert_eq!(table.acquire(&generation(6)), Acquire::Full);
    }

    #[test]
    fn what_nobody_uses_can_be_forgotten() {
        let mut table = SlotTable::new(4);
        for id in 1..=3 {
            table.acquire(&generation(id));
        }
        table.release(1);
        table.release(3);
        assert_eq!(table.forget_unused(), [1, 3]);
        assert_eq!((table.in_use(), table.resident()), (1, 1));
        assert_eq!(table.acquire(&generation(2)), Acquire::Resident(2));
        assert_eq!(table.acquire(&generation(3)), Acquire::Fill(1));
        assert_eq!(table.forget_unused(), [0; 0]);
    }

    #[test]
    fn a_failed_fill_leaves_nothing_behind() {
        let mut table = SlotTable::new(2);
        assert_eq!(table.acquire(&generation(1)), Acquire::Fill(1));
        assert_eq!(table.acquire(&generation(1)), Acquire::Resident(1));
        table.forget(1);
        assert_eq!((table.in_use(), table.resident()), (1, 0));
        assert_eq!(table.acquire(&generation(1)), Acquire::Full);
        table.release(1);
        assert_eq!(table.acquire(&generation(1)), Acquire::Fill(1));
    }

    #[test]
    fn a_bank_of_the_base_alone_is_always_full() {
        for n_slots in [0, 1] {
            let mut table = SlotTable::new(n_slots);
            assert_eq!(table.acquire(&generation(1)), Acquire::Full);
            table.release(BASE_SLOT);
            assert_eq!(
                (table.capacity(), table.in_use(), table.resident()),
                (0, 0, 0)
            );
        }
    }

    #[test]
    #[should_panic(expected = "slot 1 is released by nobody")]
    fn one_release_too_many_is_a_fault() {
        let mut table = SlotTable::new(2);
        table.acquire(&generation(1));
        table.release(1);
        table.release(1);
    }

    #[derive(Clone, Debug)]
    enum Move {
        /// A user takes this generation; where a fill is asked for, it may fail.
        Acquire { id: u8, fill_fails: bool },
        /// One of the users leaves.
        Release(usize),
    }

    fn moves() -> impl Strategy<Value = Vec<Move>> {
        let acquire = (0u8..8, prop::bool::weighted(0.1))
            .prop_map(|(id, fill_fails)| Move::Acquire { id, fill_fails });
        prop::collection::vec(
            prop_oneof![acquire, any::<usize>().prop_map(Move::Release)],
            1..200,
        )
    }

    proptest! {
        #[test]
        fn a_used_slot_never_changes_hands(n_slots in 1usize..6, moves in moves()) {
            let mut table = SlotTable::new(n_slots);
            // What the bank's rows hold, and each user's generation and slot.
            let mut rows: Vec<Option<u8>> = vec![None; n_slots];
            let mut users: Vec<(u8, usize)> = Vec::new();
            for step in moves {
                match step {
                    Move::Acquire { id, fill_fails } => match table.acquire(&generation(id)) {
                        Acquire::Resident(slot) => {
                            prop_assert_eq!(rows[slot], Some(id));
                            users.push((id, slot));
                        }
                        Acquire::Fill(slot) => {
                            prop_assert!(slot != BASE_SLOT && slot < n_slots);
                            prop_assert!(users.iter().all(|user| user.1 != slot));
                            if fill_fails {
                                rows[slot] = None;
                                table.forget(slot);
                            } else {
                                rows[slot] = Some(id);
                                users.push((id, slot));
                            }
                        }
                        Acquire::Full => {
                            prop_assert!(users.iter().all(|user| user.0 != id));
                            prop_assert!(
                                (1..n_slots).all(|slot| users.iter().any(|user| user.1 == slot))
                            );
                        }
                    },
                    Move::Release(pick) if !users.is_empty() => {
                        let (_, slot) = users.swap_remove(pick % users.len());
                        table.release(slot);
                    }
                    Move::Release(_) => {}
                }
                for &(id, slot) in &users {
                    prop_assert_eq!(rows[slot], Some(id));
                    prop_assert_eq!(table.generation(slot), Some(&generation(id)));
                }
                let mut used: Vec<usize> = users.iter().map(|user| user.1).collect();
                used.sort_unstable();
                used.dedup();
                prop_assert_eq!(table.in_use(), used.len());
                let resident = rows.iter().flatten().count();
                prop_assert_eq!(table.resident(), resident);
            }
        }
    }
}
