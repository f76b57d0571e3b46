#!/usr/bin/env bash
# Imports the example configurations of axolotl and LLaMA-Factory, which pip fetches, and counts what became of them.
#   scripts/imports.sh [FOLDER]        FOLDER keeps the archives; without it they are fetched anew each time
#   scripts/imports.sh --fetch FOLDER  fetches the archives only
# Every example of text fine-tuning of a LLaMA model must be imported or be refused for a reason, and `dslaunch plan` must accept the
# train.toml, or say which key is in its way; all others are tried too, and must at least not end otherwise.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=python3
[ ! -x .venv/bin/python ] || python=.venv/bin/python
fetch() {
    mkdir -p "$1"
    for release in axolotl==0.19.0 llamafactory==0.9.5; do
        [ ! -e "$1/${release/==/-}.tar.gz" ] || continue
        echo "fetching $release"
        "$python" -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: --dest "$1" "$release"
    done
}
if [ "${1:-}" = --fetch ]; then
    fetch "$2"
    exit
fi

dslaunch=${DSLAUNCH:-target/release/dslaunch}
[ -x "$dslaunch" ] || { cargo build --release --locked -p launcher --bin dslaunch; }
dslaunch=$(realpath "$dslaunch")
# Stands for the models: plan looks at a model's description, and not at the data.
model=$(realpath examples/deepseek-llm-7b/model)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
folder=${1:-$work/archives}
fetch "$folder"
for archive in "$folder"/*.tar.gz; do
    tar -xzf "$archive" -C "$work"
done

# Models of LLaMA's architecture, by their names; what has more experts, sees or hears is not.
is_llama='^(base_model|model_name_or_path): .*(llama|codellama|smollm2|yi-34b|deepseek-llm)'
is_other='llama-4|vision|vl-|nemotron'
failed=0
for tool in axolotl-0.19.0 llamafactory-0.9.5; do
    cd "$work/$tool"
    : >"$work/table"
    while IFS= read -r file; do
        kind=other
        named=$(grep -iE "$is_llama" "$file" || true)
        [ -z "$named" ] || grep -qiE "$is_other" <<<"$named" || kind=llama
        code=0
        timeout 20 "$dslaunch" import "$file" >"$work/out" 2>"$work/err" || code=$?
        case $code in
        0) result=complete ;;
        2) result=partly; grep -q '^error: ' "$work/err" && result=refused ;;
        *) result=broken ;;
        esac
        if [ "$result" = broken ] || { [ "$result" != refused ] && ! grep -q '^path = ' "$work/out"; }; then
            echo "$file: exit code $code, and no train.toml" >&2
            failed=1
        fi
        printf '%s %s\n' "$kind" "$result" >>"$work/table"
        [ "$kind" = llama ] || continue
        if [ "$result" != refused ]; then
            code=0
            timeout 20 "$dslaunch" plan --gpu-memory 10TB --set model.path="$model" "$work/out" >/dev/null 2>"$work/planned" || code=$?
            case $code in
            0) echo "accepted" ;;
            2) sed "s|$work/out|train.toml|" "$work/planned" | grep -m 1 -E '^error: train.toml:[0-9:]+ [a-z_.]+( = .*)?: ' || code=none ;;
            esac >>"$work/$tool.planned"
            case $code in
            0 | 2) ;;
            *)
                echo "$file: dslaunch plan refuses it and names no key (exit code $code)" >&2
                cat "$work/planned" >&2
                failed=1
                ;;
            esac
        fi
        case $result in
        refused) sed -n 's/^error: [^ ]* \(.*\)/\1/p' "$work/err" >>"$work/$tool.refused" ;;
        partly) sed -n 's/^[^ ]*: \([a-z_.0-9]*\)\(\[[0-9]*\]\)*\([a-z_.]*\)\( = .*\)\?: \(refused\|unknown key\).*/\1\3 \5/p' "$work/err" | sort -u >>"$work/$tool.partly" ;;
        esac
    done < <(find examples -name '*.y*ml' ! -path '*/accelerate/*' ! -path '*/cloud/*' | sort)
    echo "$tool: $(wc -l <"$work/table") files (llama: of a model of LLaMA's architecture, by its name)"
    sort "$work/table" | uniq -c | sed 's/^/  /'
    echo "  complete: every key mapped or without effect; partly: some keys refused or unknown, each named; refused: no train.toml"
    echo "  what dslaunch plan says (llama):"
    sort "$work/$tool.planned" 2>/dev/null | uniq -c | sort -rn | sed 's/^/  /'
    echo "  why refused (llama):"
    sort "$work/$tool.refused" 2>/dev/null | uniq -c | sort -rn | sed 's/^/  /' | head -n 20
    echo "  keys refused or unknown (llama), in how many files:"
    sort "$work/$tool.partly" 2>/dev/null | uniq -c | sort -rn | sed 's/^/  /' | head -n 40
    cd - >/dev/null
done
exit "$failed"
