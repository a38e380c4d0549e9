//! Engine, guardian, targets and stage on this kernel, on objects that each test makes for itself.
//!
//! The binary has a `main` of its own because it plays other parts, too: the guardian of its agents, an agent that is
//! killed, and a server that answers.

mod calls;
mod changes;
mod coexistence;
mod crash;
mod faults;
mod guardians;
mod halts;
mod hangs;
mod kills;
mod leases;
mod own_network;
mod parts;
mod peers;
mod protection;
mod proxies;
mod resets;
mod snapshots;
mod stages;
mod strangers;
mod support;
mod targets;
mod vanish;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

/// A test by the name of its function.
macro_rules! trials {
    ($($module:ident: $($test:ident),+;)+) => {
        [$($((concat!(stringify!($module), "::", stringify!($test)), $module::$test as fn())),+),+]
    };
}

fn main() -> ExitCode {
    if let Some(code) = parts::play() {
        return code;
    }
    let root = support::is_root();
    let tests = trials! {
        calls: connections_of_a_group_fail_with_the_named_error_and_those_of_its_neighbour_do_not,
            connections_of_one_process_fail_and_those_of_another_in_its_group_do_not,
            connections_in_a_namespace_fail_and_those_in_another_do_not,
            a_share_of_the_connections_fails_and_two_rules_do_not_count_for_each_other,
            without_a_free_port_neither_connect_nor_bind_succeeds_but_what_has_a_port_does,
            a_rule_on_calls_that_is_not_renewed_is_ignored_by_the_kernel;
        changes: a_group_is_frozen_for_the_fault_and_thawed_after_it,
            a_group_that_somebody_else_has_frozen_is_refused_and_stays_frozen,
            a_group_inside_another_frozen_one_is_undone_without_complaint,
            a_lone_process_is_stopped_and_continued,
            a_process_that_is_stopped_already_is_refused,
            a_replica_is_stopped_and_started_by_its_own_commands,
            a_daemon_that_a_command_leaves_behind_may_go_on_complaining,
            a_command_that_fails_is_undone_and_tells_why,
            a_kernel_parameter_gets_its_old_value_back,
            a_kernel_parameter_that_somebody_else_has_changed_since_is_left_so,
            a_fault_that_is_not_renewed_ends_by_itself;
        coexistence: what_others_have_on_a_router_is_as_before_and_their_traffic_is_undisturbed,
            a_hook_that_must_be_added_costs_others_no_more_than_a_moment,
            programs_of_others_at_a_group_are_as_before,
            what_others_attach_while_a_fault_is_in_force_stays_when_it_ends,
            what_somebody_takes_away_of_ours_is_told_and_the_end_is_clean,
            a_fault_leaves_the_other_direction_and_the_hook_to_another_one;
        crash: the_host_is_clean_within_a_second_after_the_agent_is_killed,
            the_host_is_clean_whenever_the_agent_is_killed,
            what_an_agent_and_its_guardian_leave_when_both_are_killed_is_undone_by_the_next_agent,
            the_guardian_lives_apart_from_its_agent_and_holds_nothing_of_its,
            an_agent_that_says_farewell_leaves_no_process_group_or_journal,
            a_dropped_agent_reverts_everything,
            a_second_agent_is_refused_with_the_name_of_the_first,
            a_service_that_is_started_again_after_a_crash_is_not_in_the_guardians_group;
        faults: thirty_percent_loss_on_a_namespace_are_thirty_percent,
            fifty_ms_on_one_process_of_a_shared_loopback_leave_its_neighbour_alone,
            a_ramp_changes_its_rule_step_by_step_and_never_takes_it_away,
            a_partitioned_group_hears_nothing_and_its_neighbour_everything,
            two_faults_on_one_namespace_share_what_is_attached,
            a_second_delay_does_not_take_the_first_ones_tap_for_an_interface,
            parameters_are_restored_though_the_process_that_named_the_namespace_has_ended,
            a_program_that_is_still_attached_is_not_called_gone;
        guardians: a_guardian_that_is_killed_is_replaced_by_one_that_reverts,
            a_guardian_that_is_stopped_is_replaced_by_one_that_reverts,
            a_guardian_that_is_frozen_is_replaced_by_one_that_reverts,
            without_a_guardian_that_can_be_had_an_agent_keeps_no_fault;
        halts: a_halted_agent_reverts_by_itself_and_begins_nothing,
            a_halted_host_refuses_the_next_agent_until_it_is_cleared,
            an_agent_that_is_stopped_is_halted_at_once,
            what_is_left_by_an_agent_and_its_guardian_is_undone_by_a_halt,
            a_halt_of_an_idle_host_finds_nothing;
        hangs: a_stopped_agent_delays_nothing_after_a_second_and_leaves_nothing_after_five,
            a_stop_from_the_terminal_is_a_hang,
            an_engine_that_is_stuck_in_a_call_is_a_hang,
            a_stopped_agent_that_holds_nothing_is_left_alone,
            a_slow_command_is_no_hang;
        kills: the_downtime_of_a_restarted_process_is_measured,
            any_of_several_processes_may_be_the_one_that_comes_back,
            the_downtime_of_a_restarted_group_is_measured,
            what_comes_back_is_killed_again_when_asked_for,
            a_successor_that_is_slow_to_end_is_counted_once,
            a_process_that_nobody_restarts_is_not_back;
        leases: a_rule_stays_in_force_while_another_fault_is_slow_and_the_owner_renews,
            what_a_hung_owner_does_not_renew_goes_quiet_though_the_engine_is_busy_and_never_comes_back;
        resets: the_connections_of_a_group_are_destroyed_and_its_neighbours_stay,
            the_connections_of_a_namespace_are_destroyed_again_and_again_until_the_end,
            connections_of_the_agent_itself_are_left_and_none_is_no_effect;
        proxies: new_connections_of_a_group_are_late_and_see_their_real_peer_and_those_of_its_neighbour_are_not,
            connections_are_slowed_down_closed_late_and_closed_after_so_many_bytes,
            what_is_open_at_the_end_is_reset_and_what_was_open_before_goes_on,
            when_the_agent_is_killed_its_connections_are_reset_and_new_ones_go_straight,
            a_peer_that_cannot_be_reached_resets_the_connection,
            curl_python_and_redis_cli_are_delayed_and_none_the_wiser;
        snapshots: what_changes_in_a_namespace_is_in_its_diff_and_nothing_else,
            packet_filters_are_in_the_diff_and_what_they_count_is_not,
            an_ip_set_and_its_elements_are_in_the_diff,
            programs_and_links_are_in_the_diff_while_they_are_held,
            groups_with_their_settings_and_states_are_in_the_diff,
            a_stopped_process_is_in_the_diff,
            mounts_and_pins_are_in_the_diff,
            a_journal_that_outlives_its_run_in_a_process_is_in_the_diff,
            traffic_makes_no_difference,
            a_snapshot_is_quick;
        own_network: a_partition_of_the_hosts_interface_leaves_ssh_alive_both_ways_and_cuts_the_rest,
            a_partition_of_the_hosts_whole_network_leaves_ssh_alive_both_ways_and_cuts_the_rest,
            a_partition_of_the_hosts_loopback_leaves_ssh_alive_and_cuts_the_rest,
            a_delay_on_the_hosts_network_does_not_slow_ssh_and_a_port_that_is_allowed_is_not_spared;
        peers: a_component_is_where_its_replicas_listen_and_what_is_beside_them_stays,
            a_namespace_and_a_host_are_their_addresses_of_both_families;
        protection: what_keeps_a_host_in_order_is_refused_alone_and_in_groups_and_allowed_by_its_name,
            what_was_allowed_is_noted_in_the_plan,
            nothing_lifts_the_protection_of_firedrill_itself,
            a_protected_process_that_joins_before_the_fault_stops_it,
            a_protected_process_that_joins_later_is_not_killed_with_the_others,
            a_configuration_adds_to_what_is_protected,
            on_the_hosts_own_network_the_ports_of_ssh_are_let_through_unless_they_are_named,
            a_fault_that_would_fight_with_another_is_refused_with_its_name,
            caps_are_kept_by_the_agent_and_say_where_they_are_set;
        stages: two_namespaces_joined_by_a_veth_pair_hear_each_other,
            a_process_is_in_its_group_and_namespace_from_the_start_and_all_go_together,
            a_program_that_is_not_there_is_an_error_and_leaves_nothing,
            a_name_that_is_taken_is_refused_and_its_owner_untouched,
            a_frozen_or_stopped_process_does_not_keep_its_stage;
        targets: a_group_is_found_with_its_processes_and_their_namespace,
            a_process_is_found_by_what_it_is,
            a_process_is_found_by_the_port_on_which_it_listens,
            a_process_whose_arguments_are_on_our_command_line_too_can_be_told_from_us,
            a_namespace_is_all_of_its_interfaces_but_the_loopback,
            what_is_not_there_is_an_error_that_names_what_is_similar,
            what_keeps_the_host_alive_is_refused,
            the_root_group_is_refused_however_it_is_spelled,
            a_group_whose_processes_are_in_several_namespaces_is_refused,
            a_group_without_processes_is_an_error_unless_commands_can_start_it,
            a_process_that_has_ended_but_was_not_reaped_is_not_there;
        vanish: an_interface_that_replaces_the_target_is_left_alone_and_the_receipt_says_so,
            one_that_has_even_its_index_is_left_alone_too,
            an_interface_that_is_removed_takes_its_delay_line_along,
            an_interface_that_comes_later_is_delayed_as_the_others_of_its_namespace,
            an_interface_that_comes_later_is_delayed_for_a_group_as_the_others,
            a_group_that_is_made_anew_is_left_alone_by_a_packet_fault,
            a_group_that_is_made_anew_is_neither_frozen_nor_thawed,
            a_target_that_goes_between_plan_and_apply_is_an_error_and_nothing_is_done,
            a_namespace_that_is_deleted_under_a_fault_does_not_block_its_end,
            the_rule_too_many_is_an_error_with_the_limit_and_the_others_go_on,
            a_namespace_with_more_interfaces_than_delay_lines_is_an_error_with_the_limit_and_nothing_is_done;
    };
    let trial = |(name, test): (&str, fn())| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
        .with_ignored_flag(!root)
    };
    // On a machine that others need, its own network is left alone.
    const ONLY_IN_GUESTS: &str = "own_network::";
    let wanted = |name: &str| support::in_guest() || !name.starts_with(ONLY_IN_GUESTS);
    let mut arguments = Arguments::from_args();
    // They measure time, and compare the state of one kernel before and after.
    arguments.test_threads.get_or_insert(1);
    libtest_mimic::run(&arguments, tests.into_iter().filter(|(name, _)| wanted(name)).map(trial).collect()).exit_code()
}
