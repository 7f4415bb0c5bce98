//! What an earlier daemon left, and what the next one makes of it before it knows better.

use lb_common::track::Status;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn status(state: &State, address: &str) -> Status {
    state.status(web().key, ip(address))
}

/// A daemon begins without any next hop: that is no reason to ignore health, as when nobody can be reached.
#[test]
fn who_was_down_stays_down_while_next_hops_are_looked_up() {
    let key = web().key;
    let mut state = State::new(&config(&[web()]));
    let left = [(key, ip(A), Status::Active), (key, ip(B), Status::Down)];
    state.carry_on(left, 1_000 * SECOND, Instant::now());
    state.advance(1_000 * SECOND);
    assert_eq!(status(&state, B), Status::Down);
    for address in [B, A] {
        state.set_next_hop(ip(address), NextHopState::Resolved(hop()));
        state.advance(1_001 * SECOND);
        assert_eq!(status(&state, A), Status::Active, "{address} is looked up");
        assert_eq!(status(&state, B), Status::Down, "{address} is looked up");
    }
    // Now that everybody fails, it is.
    up(&mut state, "web", A, Health::Down);
    state.advance(1_002 * SECOND);
    assert_eq!(status(&state, A), Status::Active);
    assert_eq!(status(&state, B), Status::Active);
}
