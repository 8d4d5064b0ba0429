//! Proofs that need more than one module: packing changes nothing, and the reference's runs are ours.

mod end_to_end;
mod lntuning;
mod methods;
mod packing;
mod staged;
