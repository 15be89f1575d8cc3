#!/usr/bin/env bash
# What the action runs. Inputs are in the environment and are never read as code; AIM and OPTIONS are split at blanks.
set -euo pipefail
read -ra words <<< "$AIM ${OPTIONS:-}"
[ -z "${CALIB:-}" ] || words+=(--calib "$CALIB")
result="$OUTPUT.json" summary="$OUTPUT.md"
code=0
onnxprune "$MODEL" "${words[@]}" -o "$OUTPUT" --force --summary "$summary" --json > "$result" || code=$?
if [ "$code" -eq 0 ]; then
  cat "$summary" >> "$GITHUB_STEP_SUMMARY"
else
  echo "### onnxprune ended with exit code $code, nothing was written" >> "$GITHUB_STEP_SUMMARY"
fi
{
  echo "result=$result"
  python -c 'import json, sys; print("verdict=" + ((json.load(open(sys.argv[1])).get("fidelity") or {}).get("verdict") or ""))' "$result" 2> /dev/null || echo "verdict="
} >> "$GITHUB_OUTPUT"
exit "$code"
