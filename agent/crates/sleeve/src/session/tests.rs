#![expect(clippy::disallowed_methods, reason = "a moment to start from; time is moved from there")]

use super::*;

const EXPORTED: [u8; 32] = [7; 32];
const ONE: NonZeroU8 = NonZeroU8::MIN;

fn config(role: Role) -> Config {
    Config {
        role,
        suite: Suite::Aes128Gcm,
        send_queues: ONE,
        receive_queues: ONE,
        remote_index: 1,
        record_len: 1472,
    }
}

/// One end: the machine, and the keys that it has told the data plane to use.
struct End {
    session: Session,
    seal: Option<SealEpoch>,
    open: Vec<OpenEpoch>,
}

impl End {
    fn new(role: Role, now: Instant) -> Self {
        let session = Session::new(config(role), &EXPORTED, now);
        let mut end = Self { session, seal: None, open: Vec::new() };
        end.drain();
        end
    }

    fn drain(&mut self) {
        while let Some(output) = self.session.poll_output() {
            match output {
                Output::Open(epoch) => self.open.push(epoch),
                Output::Forget(number) => self.open.retain(|epoch| epoch.epoch != number),
                Output::Seal(epoch) => self.seal = Some(epoch),
            }
        }
    }

    fn opens(&self) -> Vec<u64> {
        self.open.iter().map(|epoch| epoch.epoch).collect()
    }

    fn send(&self) -> Vec<u8> {
        let lane = &self.seal.as_ref().unwrap().lanes[0];
        let mut record = vec![0; 4 + crate::header::OVERHEAD];
        let mark = crate::lane::Mark {
            counter: lane.reserve(1).unwrap(),
            kind: crate::header::Kind::Probe,
            flags: crate::header::Flags::NONE,
            confirmed: self.session.opened_epoch(),
        };
        lane.seal(mark, b"ping", &mut record);
        record
    }

    fn receive(&mut self, record: &[u8], now: Instant) -> bool {
        let header = crate::header::Header::parse(record).unwrap();
        let head = record.first_chunk().unwrap();
        let key = self.open.iter().find(|epoch| low_byte(epoch.epoch) == header.epoch);
        let Some(key) = key.map(|epoch| &epoch.keys[0]) else { return false };
        if key.open(header.counter, head, &record[crate::header::HEADER_LEN..], &mut [0; 4]).is_err() {
            return false;
        }
        self.session.handle_opened(header.epoch, now);
        self.session.handle_confirmed(header.confirmed);
        self.drain();
        true
    }
}

fn exchange(a: &mut End, b: &mut End, now: Instant) {
    let record = a.send();
    assert!(b.receive(&record, now));
    let record = b.send();
    assert!(a.receive(&record, now));
}

#[test]
fn both_ends_go_through_many_epochs_without_losing_a_record() {
    let mut now = Instant::now();
    let (mut a, mut b) = (End::new(Role::Initiator, now), End::new(Role::Responder, now));
    for epoch in 0..600 {
        assert_eq!(a.session.sending_epoch(), epoch);
        // The record in flight while the epoch changes must still open.
        let overtaken = a.send();
        exchange(&mut a, &mut b, now);
        now += REKEY_AFTER;
        a.session.handle_timeout(now);
        b.session.handle_timeout(now);
        a.drain();
        b.drain();
        let record = a.send();
        assert!(b.receive(&record, now));
        assert!(
            b.receive(&overtaken, now),
            "the old epoch opens until the new one is confirmed, and a while longer"
        );
        assert!(b.open.len() <= 3, "at most the previous, the present and the next");
        let back = b.send();
        assert!(a.receive(&back, now));
    }
}

#[test]
fn without_a_confirmation_the_epoch_stays() {
    let now = Instant::now();
    let mut a = End::new(Role::Initiator, now);
    a.session.handle_timeout(now + REKEY_AFTER * 100);
    a.session.handle_sealed(u64::MAX, now);
    a.drain();
    assert_eq!(a.session.sending_epoch(), 0);
    assert_eq!(a.session.poll_timeout(), None, "no timer spins while the other end is silent");
}

#[test]
fn a_used_up_key_stops_sealing() {
    let now = Instant::now();
    let a = End::new(Role::Initiator, now);
    let lane = &a.seal.as_ref().unwrap().lanes[0];
    let all = usize::try_from(Suite::Aes128Gcm.record_limit(1472) * 2).unwrap();
    assert_eq!(lane.reserve(all), Ok(0));
    assert_eq!(lane.reserve(1), Err(crate::lane::Exhausted));
}

#[test]
fn many_records_bring_the_next_epoch_early() {
    let now = Instant::now();
    let (mut a, mut b) = (End::new(Role::Initiator, now), End::new(Role::Responder, now));
    exchange(&mut a, &mut b, now);
    a.session.handle_sealed(Suite::Aes128Gcm.record_limit(1472), now);
    assert_eq!(a.session.sending_epoch(), 1);
}

#[test]
fn the_previous_epoch_is_forgotten_after_a_while() {
    let now = Instant::now();
    let (mut a, mut b) = (End::new(Role::Initiator, now), End::new(Role::Responder, now));
    exchange(&mut a, &mut b, now);
    a.session.handle_timeout(now + REKEY_AFTER);
    a.drain();
    let record = a.send();
    assert!(b.receive(&record, now + REKEY_AFTER));
    assert_eq!(b.opens(), [0, 1, 2]);
    b.session.handle_timeout(now + REKEY_AFTER + LINGER);
    b.drain();
    assert_eq!(b.opens(), [1, 2]);
}

#[test]
fn the_two_directions_have_different_keys() {
    let now = Instant::now();
    let mut a = End::new(Role::Initiator, now);
    let own = a.send();
    assert!(!a.receive(&own, now), "a reflected record must not open");
}
