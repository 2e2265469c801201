{{/* Names and labels. */}}
{{- define "tandem.name" -}}
{{- if contains "tandem" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-tandem" (.Release.Name | trunc 33 | trimSuffix "-") }}{{ end }}
{{- end }}

{{- define "tandem.selector" -}}
app.kubernetes.io/name: tandem
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "tandem.labels" -}}
{{ include "tandem.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* --name=value for each of a map of settings, in the order of their names. */}}
{{- define "tandem.settings" -}}
{{- range $name, $value := . }}
- {{ printf "--%s=%s" $name (kindIs "string" $value | ternary $value (toJson $value)) | quote }}
{{- end }}
{{- end }}

{{/* The addresses of all routers for nodes. */}}
{{- define "tandem.routers" -}}
{{- $name := include "tandem.name" . }}
{{- range $i := until (int .Values.router.count) }}
- --router=tcp://{{ $name }}-router-{{ $i }}:5701
{{- end }}
{{- end }}

{{/* A program is alive and ready as its metrics port says. A failed liveness probe is a restart. */}}
{{- define "tandem.probes" -}}
livenessProbe:
  httpGet: {path: /healthz, port: metrics}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: metrics}
  periodSeconds: 5
  timeoutSeconds: 5
startupProbe:
  httpGet: {path: /healthz, port: metrics}
  periodSeconds: 5
  timeoutSeconds: 5
{{- end }}

{{- define "tandem.podAnnotations" -}}
prometheus.io/scrape: "true"
prometheus.io/port: {{ .Values.metricsPort | quote }}
{{- end }}

{{/* Pods run as the image's user; nothing needs the API server. */}}
{{- define "tandem.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* A quantity like 500m as a decimal, for KEDA. */}}
{{- define "tandem.decimal" -}}
{{- if hasSuffix "m" . }}{{ divf (trimSuffix "m" . | float64) 1000 }}{{ else }}{{ . }}{{ end }}
{{- end }}
