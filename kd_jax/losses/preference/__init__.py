"""Preference losses: functions of the log-probabilities and lengths of pairs, one value a pair."""
