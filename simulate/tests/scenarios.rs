//! Every scenario keeps what is promised; each is a case of its own. Prints what it found, for that is part of the proof.

use lb_simulate::{Scenario, report, simulate, verdict};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::from_args();
    let mut trials: Vec<Trial> = Scenario::all()?
        .into_iter()
        .map(|scenario| Trial::test(scenario.name.clone(), move || keeps(&scenario)))
        .collect();
    trials.push(Trial::test("same_numbers_again", same_numbers_again));
    libtest_mimic::run(&arguments, trials).exit()
}

fn keeps(scenario: &Scenario) -> Result<(), Failed> {
    let outcomes = simulate(scenario);
    println!("\n{}", report::text(scenario, &outcomes));
    let complaints = verdict::complaints(scenario, &outcomes);
    if complaints.is_empty() {
        Ok(())
    } else {
        Err(complaints.join("\n").into())
    }
}

fn same_numbers_again() -> Result<(), Failed> {
    let mut scenario = Scenario::all()?.swap_remove(0);
    scenario.arrivals /= 10.0;
    let runs = [simulate(&scenario), simulate(&scenario)].map(|outcomes| format!("{outcomes:?}"));
    if runs[0] == runs[1] {
        Ok(())
    } else {
        Err(format!("two runs differ:\n{}\n{}", runs[0], runs[1]).into())
    }
}
