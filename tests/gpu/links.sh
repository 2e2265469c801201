# shellcheck shell=bash disable=SC2154
# The part "links" of run.sh, which sources this: clusters over each link between nodes, beside what the plain way
# of each link carries. Logs and figures are named links-SHAPE-GPUS.

LINKS=(nccl ipc shm tcp)

# Why a link cannot be had here; nothing if it can.
link_lacks() { # LINK
    local plugin=${TANDEM_PLUGIN_DIR:-$folder/lib/tandem}/libtandem_$1.so
    case $1 in shm | tcp) return ;; esac
    if [ ! -e "$plugin" ]; then
        echo "libtandem_$1.so was not built"
    else
        with_libraries ldd "$plugin" | awk '/not found/ { print $1 " is not on this machine"; exit }'
    fi
}

link_not_measured() { # LINK WHY
    say "$1: not measured: $2"
    say ""
    [ -z "$emulated" ] || failed=$((failed + 1))
}

# One program's figures, added to those of the shape.
link_figures() { # NAME LOG COMMAND...
    local name=$1 log=$logs/$2.log status=0 given
    shift 2
    given=$(seconds_of 1500)
    [ "$given" -gt 0 ] || { cut_off "${log##*/}: not measured: no time was left"; return; }
    with_libraries in_time "$given" "$@" >/dev/null 2>"$log" || status=$?
    json_of "$log" >>"$logs/$name.json"
    keep_logs
    grep -hE '^[a-z0-9_]*: not measured' "$log" | tee -a "$report/report.md" || true
    [ "$status" -ne 124 ] || { cut_off "${log##*/}: cut off after $given s: figures are missing"; return; }
    [ "$status" -eq 0 ] || fail "$2 **failed** ($status): $(grep -m 1 -E '^ERROR|error:' "$log" || tail -n 1 "$log")"
}

link_shares() { # NAME: the best rate as a share of what the plain way has carried
    figures "$logs/$1.json" | awk '
        { value[$1] = $2 }
        END {
            for (name in value) {
                link = name
                if (!sub(/_rate_best_gb_s$/, "", link) || !value[link "_ceiling_gb_s"]) continue
                printf "{\"%s_of_ceiling_percent\": %.4g}\n", link, 100 * value[name] / value[link "_ceiling_gb_s"]
            }
        }' >"$logs/$1.shares"
    cat "$logs/$1.shares" >>"$logs/$1.json"
    rm -f "$logs/$1.shares"
}

print_links() { # NAME
    say "| figure |$(printf ' %s |' "${LINKS[@]}")"
    say "| --- |$(printf ' --- |%.0s' "${LINKS[@]}")"
    figures "$logs/$1.json" | awk -v links="${LINKS[*]}" '
        BEGIN { columns = split(links, link, " ") }
        {
            from = index($1, "_")
            name = substr($1, from + 1)
            if (!(name in seen)) { seen[name]; all[++count] = name }
            value[name, substr($1, 1, from - 1)] = $2
        }
        END {
            for (i = 1; i <= count; i++) {
                row = "| " all[i] " |"
                for (c = 1; c <= columns; c++)
                    row = row " " ((all[i], link[c]) in value ? value[all[i], link[c]] : "-") " |"
                print row
            }
        }' | tee -a "$report/report.md"
    say ""
}

print_link_aims() { # NAME
    local link
    say "| aim | wanted | worst | |"
    say "| --- | --- | --- | --- |"
    for link in "${LINKS[@]}"; do
        aim "$1" "$link: prefill slower while it pushes" "${link}_prefill_slower_percent" most 3 %
        aim "$1" "$link: decode slower while it receives" "${link}_decode_slower_percent" most 3 %
    done
    say ""
}

# So that no figure gets lost.
check_link_families() { # NAME
    local link family
    for link in "${LINKS[@]}"; do
        [ -z "$(link_lacks "$link")" ] || continue
        for family in ceiling_gb_s streams_equal setup_ms handover_{idle,busy}_p{50,99}_ms \
            handover_{idle,busy}_gap_p{50,99}_ms prefill_{pushing,alone}_ms prefill_slower_percent \
            itl_{receiving,not_receiving}_ms decode_slower_percent rate_gb_s rate_told_gb_s of_ceiling_percent \
            {decode,prefill}_killed_{next_token,ready_again,pair_again}_ms; do
            figures "$logs/$1.json" | grep -qE "^${link}_$family [-0-9.]" ||
                grep -qhE "^${link}_$family: not measured" "$report/report.md" ||
                fail "**missing**: ${link}_$family of $1"
        done
    done
}

links_of() { # SHAPE MODEL GPUS
    local name=links-$1-${3/,/-} link lacks kind=${emulated:+_emulated} size=() cut_before=$cut
    [ -z "$emulated" ] || size=(--kib 64 --pieces 4 --rounds 1)
    : >"$logs/$name.json"
    say "### $1, prefill and decode on GPU ${3/,/ and }"
    say ""
    link_figures "$name" "$name-ceilings" "$folder/gpu/link_ceilings$kind" --devices "$3" "${size[@]}"
    for link in "${LINKS[@]}"; do
        lacks=$(link_lacks "$link")
        if [ -n "$lacks" ]; then
            link_not_measured "$link" "$lacks"
            continue
        fi
        [ "$link" != nccl ] || link_figures "$name" "$name-nccl-ceiling" "$folder/gpu/nccl_ceiling$kind" \
            --devices "$3" "${size[@]}"
        link_figures "$name" "$name-$link" "$folder/gpu/link_bench" --shape "$1" --model "$2" --link "$link" \
            --gpus "$3"
    done
    link_shares "$name"
    print_link_aims "$name"
    print_links "$name"
    [ "$cut" -gt "$cut_before" ] || check_link_families "$name"
}

# Three nodes at a time: weights, KV and what a node has besides.
shape_mib() { # SHAPE
    case $1 in 8b) echo 75000 ;; 1b) echo 18000 ;; *) echo 6000 ;; esac
}

links_on() { # GPUS
    local shape model has
    has=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits 2>/dev/null | sort -n | head -n 1) || true
    for shape in $link_shapes; do
        if [ -z "$emulated" ] && [ "${has:-0}" -gt 0 ] && [ "$has" -lt "$(shape_mib "$shape")" ]; then
            say "$shape: not measured: a GPU has $has MiB; its nodes need $(shape_mib "$shape")"
            say ""
            continue
        fi
        if [ "$shape" = demo ]; then
            links_of demo "$TANDEM_SOURCE_DIR/examples/demo_model/model" "$1"
            continue
        fi
        model=$(mktemp -d "$scratch/tandem-links-XXXXXX")
        scratch_models+=("$model")
        if [ "$(seconds_of 60)" -lt 60 ]; then
            cut_off "$shape: not measured: no time was left"
        elif with_libraries "$folder/gpu/link_bench" --shape "$shape" --make "$model" 2>"$logs/links-make.log"; then
            links_of "$shape" "$model" "$1"
        else
            fail "links of $shape: **failed**: $(tail -n 1 "$logs/links-make.log")"
        fi
        rm -rf "$model"
    done
}

run_links() {
    local link_shapes="demo $shapes" gpus
    gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU') || true
    if [ -n "$emulated" ]; then
        link_shapes=$shapes gpus=2
        export TANDEM_FAKE_CUDA=devices=2
    fi
    say ""
    say "## Links between nodes"
    say ""
    say "On one GPU for all nodes NCCL goes over loopback sockets, which shows that it works and not how fast."
    say ""
    links_on 0,0
    if [ "$gpus" -ge 2 ]; then
        [ -z "$emulated" ] || LINKS=(nccl) # ipc there is what it was
        links_on 0,1
    else
        say "Prefill and decode on GPUs of their own: not measured: there is one GPU."
    fi
    unset TANDEM_FAKE_CUDA
}
