{{- define "integration-server.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{- define "integration-server.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "integration-server.labels" -}}
{{ include "integration-server.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "integration-server.image" -}}
{{- if .Values.image.digest -}}
{{ printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else -}}
{{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- end -}}
{{- end }}

{{- define "integration-server.secretName" -}}
{{ if .Values.externalSecrets.enabled }}{{ include "integration-server.name" . }}{{ else }}{{ .Values.secretName }}{{ end }}
{{- end }}

{{- define "integration-server.databaseUrl" -}}
name: DATABASE_URL
valueFrom:
  secretKeyRef:
    name: {{ .Values.databaseUrl.secretName | default (include "integration-server.secretName" .) | quote }}
    key: {{ if .Values.databaseUrl.secretName }}{{ .Values.databaseUrl.key | default "DATABASE_URL" | quote }}{{ else }}DATABASE_URL{{ end }}
{{- end }}

{{- define "integration-server.tlsSecretName" -}}
{{ if .Values.tls.certManager.enabled }}{{ include "integration-server.name" . }}-tls{{ else }}{{ .Values.tls.secretName }}{{ end }}
{{- end }}

{{- define "integration-server.serviceAccountName" -}}
{{ if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "integration-server.name" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{- define "integration-server.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "integration-server.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* A number as it is written: Helm reads it as a float, which would print a million as 1e+06. */ -}}
{{- define "integration-server.text" -}}
{{ if and (kindIs "float64" .) (eq . (floor .)) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{- /* The seconds of a setting, of the values or the default, as a whole number. */ -}}
{{- define "integration-server.seconds" -}}
{{- $text := include "integration-server.text" (index . 0) | trim -}}
{{ ternary (index . 1) (ceil (float64 $text)) (eq $text "") }}
{{- end }}
