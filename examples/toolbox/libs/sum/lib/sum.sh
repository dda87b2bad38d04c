tool_sum() {
    total=0
    for number; do total=$((total + number)); done
    echo "$total"
}
