//! Explicit congestion notification through the tunnel (RFC 6040).
//!
//! Entering, the outer header copies the inner codepoint ("normal mode"), so that a router on the way may mark it.
//! Leaving, the mark is carried over to the inner packet, or, where the inner transport could not understand it,
//! the packet is dropped: that *is* the signal it would have got from a router.

/// The two low bits of the IPv4 TOS byte or the IPv6 traffic class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ecn {
    /// The transport does not use ECN.
    #[default]
    NotEct = 0b00,
    /// ECN-capable, codepoint 1.
    Ect1 = 0b01,
    /// ECN-capable, codepoint 0.
    Ect0 = 0b10,
    /// Congestion was experienced.
    Ce = 0b11,
}

impl Ecn {
    /// The codepoint in a TOS or traffic class byte.
    #[inline]
    #[must_use]
    pub const fn of(traffic_class: u8) -> Self {
        match traffic_class & 0b11 {
            0b00 => Self::NotEct,
            0b01 => Self::Ect1,
            0b10 => Self::Ect0,
            _ => Self::Ce,
        }
    }

    /// What the inner packet carries on when a packet `self` inside arrived with `outer` outside; none if it is to
    /// be dropped. The table of RFC 6040 section 4.2.
    #[inline]
    #[must_use]
    pub const fn decapsulated(self, outer: Self) -> Option<Self> {
        match (self, outer) {
            (Self::NotEct, Self::Ce) => None,
            (Self::NotEct, Self::NotEct | Self::Ect0 | Self::Ect1) => Some(Self::NotEct),
            (Self::Ce, _) | (Self::Ect0 | Self::Ect1, Self::Ce) => Some(Self::Ce),
            (Self::Ect0, Self::Ect1) => Some(Self::Ect1),
            (Self::Ect0, Self::NotEct | Self::Ect0) => Some(Self::Ect0),
            (Self::Ect1, Self::NotEct | Self::Ect0 | Self::Ect1) => Some(Self::Ect1),
        }
    }
}

#[cfg(test)]
mod tests;
