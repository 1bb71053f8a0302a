use super::Ecn::{Ce, Ect0, Ect1, NotEct};
use super::*;

#[test]
fn leaving_the_tunnel_follows_figure_4_of_rfc_6040() {
    // Rows: inner. Columns: outer NotEct, Ect0, Ect1, Ce.
    let figure = [
        (NotEct, [Some(NotEct), Some(NotEct), Some(NotEct), None]),
        (Ect0, [Some(Ect0), Some(Ect0), Some(Ect1), Some(Ce)]),
        (Ect1, [Some(Ect1), Some(Ect1), Some(Ect1), Some(Ce)]),
        (Ce, [Some(Ce), Some(Ce), Some(Ce), Some(Ce)]),
    ];
    for (inner, row) in figure {
        for (outer, expected) in [NotEct, Ect0, Ect1, Ce].into_iter().zip(row) {
            assert_eq!(inner.decapsulated(outer), expected, "inner {inner:?}, outer {outer:?}");
        }
    }
}

#[test]
fn the_codepoint_is_the_low_two_bits() {
    for ecn in [NotEct, Ect0, Ect1, Ce] {
        assert_eq!(Ecn::of(0xb8 | ecn as u8), ecn);
    }
}
