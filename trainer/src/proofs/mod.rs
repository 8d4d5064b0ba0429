//! Proofs that need more than one module: packing changes nothing, and the reference's run is ours.

mod end_to_end;
mod lntuning;
mod packing;
