"""The founding systems, claim by claim, and the tests that hold each claim on data whose answer is known."""

import ast
from pathlib import Path

import pytest

ROWS: dict[str, dict[str, list[str]]] = {
    "DDPM (Ho et al. 2020)": {
        "1000 steps give the covariance with both fixed variances; 50 tell them apart": [
            "test_samplers.test_both_variances_of_ddpm_give_the_covariance_in_a_thousand_steps_and_differ_in_fifty",
            "test_learned_variance.test_the_best_variance_widens_samples_that_the_small_one_leaves_too_narrow",
        ],
        "steps and schedules are those of diffusers": [
            "test_samplers_diffusers.test_every_call_is_that_of_diffusers",
            "test_diffusion.test_tables_agree_with_diffusers",
        ],
        "samples of a mixture have its moments": [
            "test_samplers.test_samples_of_a_mixture_have_its_weights_mean_and_covariance",
        ],
    },
    "Improved DDPM (Nichol and Dhariwal 2021)": {
        "cosine matches its formula": ["test_learned_variance.test_cosine_is_the_formula"],
        "the learned variance at v = 0 and 1 is the two bounds": [
            "test_learned_variance.test_v_of_zero_and_one_are_the_two_bounds",
            "test_learned_variance.test_a_learned_constant_is_the_fixed_variance",
        ],
        "the bound has no gradient on the mean": ["test_learned_variance.test_the_bound_teaches_the_variance_alone"],
        "fewer steps keep alpha-bar": [
            "test_learned_variance.test_fewer_steps_keep_the_signal_at_the_steps_that_stay",
        ],
        "importance sampling is unbiased": [
            "test_learned_variance.test_importance_sampling_is_unbiased_and_varies_less",
            "test_learned_variance.test_steps_are_drawn_evenly_until_all_have_enough_losses",
        ],
        "bits per dimension, in parts": [
            "test_learned_variance.test_terms_are_the_divergences_of_the_posterior_from_the_step",
            "test_learned_variance.test_the_bound_is_above_the_likelihood_and_tightest_with_the_best_variance",
            "test_bound.test_the_bound_of_pixels_is_their_entropy_and_little_more",
        ],
        "the learned variance is the best one, and few steps are right with it": [
            "test_learned_variance.test_the_bound_learns_the_best_variance",
            "test_learned_variance.test_a_trained_network_has_a_tighter_bound_than_either_fixed_variance",
        ],
    },
    "DDIM (Song et al. 2021)": {
        "eta 0 twice is the same to the bit": ["test_samplers.test_ddim_twice_is_the_same_to_the_bit"],
        "eta 1 is DDPM": ["test_samplers.test_ancestral_ddim_is_ddpm_with_the_small_variance"],
        "inversion and reconstruction err as one over the steps": [
            "test_samplers.test_inversion_and_reconstruction_err_as_one_over_the_steps",
            "test_samplers.test_rising_times_lead_from_data_to_noise",
            "test_tasks_inversion."
            "test_the_error_of_the_way_there_and_back_is_the_one_measured_and_halves_with_twice_the_steps",
        ],
        "images along the arc between two noises change without a jump": [
            "test_tasks_interpolation.test_images_along_the_arc_change_without_a_jump",
        ],
    },
    "score-based SDE, NCSN (Song et al. 2021, Song and Ermon 2019)": {
        "marginals of VP, sub-VP and VE are those of the simulated equations": [
            "test_processes.test_marginals_are_those_of_the_simulated_equation",
            "test_processes.test_marginals_of_a_table_are_those_of_its_simulated_chain",
            "test_processes.test_sub_vp_has_less_noise_than_vp_and_both_end_in_unit_noise",
        ],
        "every sampler follows sub-VP and VE": [
            "test_processes.test_every_sampler_follows_every_process",
            "test_processes.test_samples_of_a_mixture_under_sub_vp_have_its_moments",
        ],
        "Langevin steps help VE at 50 steps, not at 500": [
            "test_processes.test_langevin_steps_help_where_ve_steps_are_long",
        ],
        "the likelihood by the flow is the closed form": [
            "test_probability_flow.test_the_likelihood_is_the_closed_form",
            "test_probability_flow.test_one_probe_is_right_on_average",
        ],
    },
    "VDM (Kingma et al. 2021)": {
        "equal ends, equal loss; other shape, other variance": [
            "test_vdm.test_curves_have_the_same_ends_and_fall",
            "test_vdm.test_the_loss_is_that_of_the_ends_and_its_variance_that_of_the_shape",
        ],
        "a learned schedule lowers the variance": [
            "test_vdm.test_a_learned_curve_varies_less_than_all_shapes_and_keeps_the_loss",
        ],
        "three parts of the bound, above the exact likelihood and tight": [
            "test_vdm.test_the_bound_is_the_exact_likelihood_for_the_exact_denoiser",
            "test_vdm.test_noise_that_hides_less_at_its_end_costs_prior_bits",
        ],
    },
    "ADM, classifier guidance (Dhariwal and Nichol 2021)": {
        "scale 1 with the exact classifier is the class, scale 0 all data": [
            "test_guidance.test_the_exact_classifier_at_scale_1_gives_the_class_and_at_scale_0_all_data",
            "test_guidance.test_a_step_by_the_exact_classifier_is_one_of_the_class",
        ],
        "a classifier of noisy latents learns Bayes' rule": [
            "test_guidance_classifier.test_it_learns_bayes_rule_and_leads_as_the_exact_classifier_does",
        ],
    },
    "CFG (Ho and Salimans 2022)": {
        "scales 1 and 0 are one of the denoisers, bit for bit": [
            "test_guidance.test_scales_1_and_0_are_one_of_the_denoisers_in_every_bit_and_call_no_other",
        ],
        "both formulas agree": [
            "test_guidance.test_both_formulas_of_classifier_free_guidance_and_that_of_the_noise_agree",
        ],
        "guidance needs dropped captions": [
            "test_guidance_models.test_only_what_asks_without_a_prompt_needs_dropped_captions",
        ],
    },
    "RePaint (Lugmayr et al. 2022)": {
        "resampling brings the conditional mean of a Gaussian": [
            "test_tasks_repaint.test_the_conditional_mean_of_a_gaussian_comes_with_resampling",
        ],
        "the number and order of calls are the paper's": [
            "test_tasks_repaint.test_the_number_of_steps_is_that_of_the_paper",
            "test_tasks_repaint.test_the_order_of_steps_is_that_of_the_papers_code",
        ],
        "known pixels come back to the bit": ["test_tasks.test_inpaint_keeps_what_is_known"],
    },
    "SDEdit (Meng et al. 2022)": {
        "steps are strength times all; strength 0 is the input, strength 1 keeps nothing of it": [
            "test_tasks_sdedit.test_the_share_of_steps_is_the_strength",
            "test_tasks_sdedit.test_strength_0_gives_the_latent_back_and_calls_nothing",
            "test_tasks_sdedit.test_at_strength_1_nothing_of_the_image_is_left",
            "test_tasks_sdedit.test_what_is_left_of_a_gaussian_is_alpha_of_the_start",
        ],
    },
    "self-conditioning (Chen et al. 2023)": {
        "half of the rows see an estimate, none is trained through": [
            "test_self_conditioning.test_rows_without_an_estimate_see_zeros_and_the_others_the_first_pass",
            "test_self_conditioning.test_the_first_pass_is_not_trained_through",
        ],
        "a second pass lowers the loss, behind the contract of every denoiser": [
            "test_self_conditioning.test_a_second_pass_has_a_lower_loss",
            "test_self_conditioning.test_a_trajectory_is_a_function_of_its_noise",
        ],
    },
}
"""System -> claim -> tests, as file.function."""


@pytest.mark.parametrize("system", ROWS)
def test_every_claim_has_its_tests(system: str) -> None:
    for claim, tests in ROWS[system].items():
        assert tests, claim
        for name in tests:
            file, function = name.split(".")
            tree = ast.parse((Path(__file__).parent / f"{file}.py").read_text(encoding="utf-8"))
            found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert function in found, f"{system}: {claim}: no {name}"
